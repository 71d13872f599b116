#!/usr/bin/env bash
# Installs what some tests need from the system: a real browser (the HTML report) and a real SLURM (launch scripts).
# Never fails: where packages cannot be installed it says so in one line, and those tests skip with the reason.
set -uo pipefail

# command to look for : Debian package that brings it
NEEDED="chromium:chromium chromedriver:chromium-driver sbatch:slurm-wlm munged:munge"

missing() {
    local pair
    for pair in $NEEDED; do
        command -v "${pair%%:*}" >/dev/null || PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done | sort -u
}

packages=$(missing | xargs)
[ -z "$packages" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "ci_system_packages: cannot install $packages (needs root on Debian or Ubuntu); the tests that use them will skip"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install() { timeout 300 apt-get install -y --no-install-recommends $packages >"$log" 2>&1; }
# The package lists of a fresh container are empty or old: refresh them only when a first try fails.
if install || { timeout 120 apt-get update >"$log" 2>&1 && install; }; then
    echo "ci_system_packages: installed $packages"
else
    echo "ci_system_packages: apt-get could not install $packages ($(grep -m1 '^E:' "$log" || tail -n1 "$log")); the tests that use them will skip"
fi
rm -f "$log"
exit 0
