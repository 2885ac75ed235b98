#!/usr/bin/env bash
# Runs all checks: formatting, lints, unit tests and end-to-end tests, the tests of the CUDA kernels
# on the CPU (scripts/test-cuda-kernels.sh), the Python interoperability tests
# (scripts/test-interop.sh) and a quick fault-injection test (scripts/torture.sh).
#
# Three more tests need root or Debian packages. They run if their requirements are met, or always
# with CI=true: the sense explorer in a browser (scripts/test-browser.sh), the loss of a network
# connection (scripts/test-network.sh; root and `ip` in any case) and the Slurm job scripts
# (scripts/test-slurm.sh).
#
#   scripts/test.sh [ARGUMENT...]     arguments of `cargo test`
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "${1:-}"

# One profile for everything: torch-sys takes minutes to build in each profile.
scripts/setup.sh
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace "$@"
scripts/test-cuda-kernels.sh
scripts/test-interop.sh
BACKPACK_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/release/backpack
export BACKPACK_BINARY
scripts/torture.sh --quick
skip() { echo "test: skipping the $1: $2"; }
[ -n "${BACKPACK_TEST_CORPORA:-}" ] ||
  skip 'comparison of shards with those of Python' 'BACKPACK_TEST_CORPORA is not set (docs/README.md)'
if [ "${CI:-}" = true ] || command -v chromedriver >/dev/null; then
  scripts/test-browser.sh
else
  skip 'browser test' 'Chromium and its driver are not installed (scripts/test-browser.sh installs them and runs it)'
fi
if [ "$(id -u)" = 0 ] && command -v ip >/dev/null; then
  scripts/test-network.sh
else
  skip 'network test' 'it needs root and ip (scripts/test-network.sh)'
fi
if [ "${CI:-}" = true ] || PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null; then
  scripts/test-slurm.sh
else
  skip 'Slurm tests' 'Slurm is not installed (scripts/test-slurm.sh installs it and runs them)'
fi
