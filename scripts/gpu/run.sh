#!/usr/bin/env bash
# Runs checks and measurements on this machine's GPU, with a Python that has torch. Prints one line
# per step and a table. docs/gpu.md describes the steps and the results.
#
#   scripts/gpu/run.sh                         the program of scripts/gpu/pack.sh (.gpu/backpack) if
#                                              it exists, else a normal build (target/release)
#   scripts/gpu/run.sh --binary PATH           another program
#   scripts/gpu/run.sh --libtorch DIRECTORY    another libtorch for the program
#   scripts/gpu/run.sh --budget SECONDS        time for all steps [default: 480]
#   scripts/gpu/run.sh --only NAME,...         only these steps
#   scripts/gpu/run.sh --list                  the names of the steps
#   scripts/gpu/run.sh --output DIRECTORY      for the results [default: $OUT, or runs/gpu]
#   scripts/gpu/run.sh --device cpu            a rehearsal with small sizes
#
# The exit code is 1 if a step failed. PYTHON names a Python other than python3.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
help_if_asked "$@"
# A copy to another machine may lose the permissions.
chmod +x .gpu/backpack .gpu/tests/* 2>/dev/null || true
exec "${PYTHON:-python3}" -B scripts/gpu/run.py "$@"
