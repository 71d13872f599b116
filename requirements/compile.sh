#!/usr/bin/env bash
# Re-resolves the two locked requirement files (no index addresses inside).
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
common=(pip compile pyproject.toml --extra dev --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --quiet)
UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" "$uv" "${common[@]}" --extra cpu \
    --override requirements/overrides-cpu.txt -o requirements/cpu.txt "$@"
"$uv" "${common[@]}" --extra cuda -o requirements/cuda.txt "$@"
