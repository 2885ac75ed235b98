#!/usr/bin/env bash
# All checks: set-up, formatting, lints, unit and end-to-end tests, the Python world's
# (scripts/test-interop.sh), a training disturbed in many ways (scripts/torture.sh), and what needs
# root or Debian packages where it can run, or with CI=true: the sense explorer in a browser
# (scripts/test-browser.sh), a network that is lost (scripts/test-network.sh), the job scripts on a
# real Slurm (scripts/test-slurm.sh). One profile serves them all, because building torch-sys takes
# minutes a profile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0; fi

scripts/setup.sh
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace "$@"
scripts/test-interop.sh
export BACKPACK_BINARY
BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
scripts/torture.sh --quick
if [ "${CI:-}" = true ] || command -v chromedriver >/dev/null; then
  scripts/test-browser.sh
else
  echo 'test: Chromium and its driver are not installed: the test of the explorer is left out (scripts/test-browser.sh installs them and runs it)'
fi
if [ "$(id -u)" = 0 ] && command -v ip >/dev/null; then
  scripts/test-network.sh
else
  echo 'test: the test of a lost network is left out: it needs root and ip (scripts/test-network.sh)'
fi
if [ "${CI:-}" = true ] || PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null; then
  scripts/test-slurm.sh
else
  echo 'test: Slurm is not installed: its tests are left out (scripts/test-slurm.sh installs it and runs them)'
fi
