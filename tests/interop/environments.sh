#!/usr/bin/env bash
# Makes Python environments of tests/interop where they are not yet whole, and prints the
# folder that holds them.
#
#   tests/interop/environments.sh NAME...     4.46 or newest: the transformers in it
#
# They are made once (0.9 GB to download, 2.7 GB on disk for both), in
# ${XDG_CACHE_HOME:-~/.cache}/backpack/interop. Safe to kill and to run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
say() { printf 'interop: %s\n' "$*" >&2; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/backpack/interop
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # another run may be making them

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or newer is needed."; exit 1; }
# The files that say what an environment holds are copied into it last: it is whole, or made again.
is_made() { [ -f "$1/MADE" ] && cat "${@:2}" | cmp -s - "$1/MADE"; }
install() { "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps "${@:2}" >&2; }

torch=$cache/torch
if ! is_made "$torch" requirements-torch.txt without_cuda.py; then
  say "fetching torch into $torch"
  rm -rf "$torch"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action=ignore --target "$torch" -r requirements-torch.txt >&2
  python3 without_cuda.py "$torch" >&2
  cat requirements-torch.txt without_cuda.py >"$torch/MADE"
fi
for name in "$@"; do
  list=requirements.txt
  [ "$name" = 4.46 ] || list=requirements-$name.txt
  if ! is_made "$cache/$name" "$list"; then
    say "making $cache/$name"
    python3 -m venv --clear "$cache/$name"
    install "$cache/$name" -r "$list"
    echo "$torch" >"$("$cache/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
    cp "$list" "$cache/$name/MADE"
  fi
done
printf '%s\n' "$cache"
