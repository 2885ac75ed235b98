#!/usr/bin/env bash
# All checks: set-up, formatting, lints, unit and end-to-end tests, the Python world's
# (scripts/test-interop.sh), and the job scripts on a real Slurm (scripts/test-slurm.sh) where it is
# installed, or with CI=true, which installs it. One profile serves them all, because building
# torch-sys takes minutes a profile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0; fi

scripts/setup.sh
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace "$@"
scripts/test-interop.sh
if [ "${CI:-}" = true ] || PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null; then
  BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack scripts/test-slurm.sh
else
  echo 'test: Slurm is not installed: its tests are left out (scripts/test-slurm.sh installs it and runs them)'
fi
