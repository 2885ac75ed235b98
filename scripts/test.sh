#!/usr/bin/env bash
# All checks: set-up, formatting, lints, unit and end-to-end tests, and the Python world's
# (scripts/test-interop.sh). One profile serves them all, because building torch-sys takes
# minutes a profile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0; fi

scripts/setup.sh
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace "$@"
scripts/test-interop.sh
