# Sourced by run_train.sh and run_tests.sh: a Python environment with everything installed, made once.
#
#   PYTHON=python3.12 ...   the interpreter to make .venv with (default: the first of python3, python3.14 ... python3.10
#                           that is at least 3.10); an active virtual or conda environment is used as it is

# setup FILE...: install these requirements files and the package, unless that is done; sets $PYTHON.
setup() {
  local environment="${VIRTUAL_ENV:-}"
  if [ -z "$environment" ] && [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    environment="$CONDA_PREFIX"
  fi
  if [ -z "$environment" ]; then
    environment="$PWD/.venv"
    [ -x "$environment/bin/python" ] && "$environment/bin/python" -c '' 2>/dev/null || make_environment "$environment"
  fi
  PYTHON="$environment/bin/python"
  new_enough "$PYTHON" || fail "$PYTHON is older than Python 3.10; activate a newer environment"

  local other
  other="$(other_clone)" || fail "$PYTHON does not run; remove $environment, or activate another environment"
  [ -z "$other" ] || fail "$environment has the pc-ewa of $other installed, and this is $PWD; run 'deactivate' to use $PWD/.venv, or activate another environment"

  # A mark, named by a checksum of the requirements, records what is installed: a second start installs nothing.
  local file missing=()
  for file in "$@"; do
    [ -e "$(mark "$environment" "$file")" ] || missing+=("$file")
  done
  [ "${#missing[@]}" = 0 ] && return
  echo "installing ${missing[*]} into $environment (once$(size_in_words))"
  # torch first and by its exact pin: no other package can then bring a second one.
  local pip=("$PYTHON" -m pip install --disable-pip-version-check --no-compile)
  [ -t 1 ] || pip+=(--quiet)  # on a terminal pip shows its progress bars
  echo "  torch ..."
  "${pip[@]}" "$(torch_pin)" || fail "torch could not be installed; see above"
  echo "  the other packages ..."
  "${pip[@]}" $(printf -- '-r %s ' "${missing[@]}") || fail "the requirements could not be installed; see above"
  "${pip[@]}" --no-deps -e . || fail "the package could not be installed; see above"
  echo "  compiling ..."
  # pip compiles on one core, this on all. Errors are ignored: some packages contain files for other Python versions.
  "$PYTHON" -m compileall -qq -j 0 "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
  for file in "${missing[@]}"; do
    touch "$(mark "$environment" "$file")"
  done
}

# mark ENVIRONMENT FILE: print the name of the mark for FILE with its present content, installed for this folder.
mark() {
  echo "$1/.pc-ewa-$(cat "$2" pyproject.toml <(echo "$PWD") | cksum | cut -d' ' -f1)"
}

# other_clone: print the folder of the environment's editable pc-ewa, if that exists and is not this folder.
other_clone() {
  # -I keeps this folder off sys.path, where its own metadata would be found first.
  "$PYTHON" -I - "$PWD" <<'PYTHON'
import importlib.metadata, json, os, sys, urllib.parse

try:
    origin = importlib.metadata.distribution("pc-ewa").read_text("direct_url.json")
except importlib.metadata.PackageNotFoundError:
    origin = None
origin = json.loads(origin or "{}")
if origin.get("dir_info", {}).get("editable"):
    folder = urllib.parse.unquote(urllib.parse.urlsplit(origin["url"]).path)
    if os.path.isdir(folder) and not os.path.samefile(folder, sys.argv[1]):
        print(folder)
PYTHON
}

# size_in_words: print the size of the installation if torch or open3d is missing, which are most of it.
size_in_words() {
  "$PYTHON" -I - "$(torch_pin)" <<'PYTHON'
import importlib.metadata, sys

installed = {d.metadata["Name"]: d.version.partition("+")[0] for d in importlib.metadata.distributions()}
gigabytes = ("torch==" + installed.get("torch", "") != sys.argv[1]) + ("open3d" not in installed)
if gigabytes:
    print(f"; about {gigabytes} GB and a few minutes", end="")
PYTHON
}

torch_pin() {
  grep -o '^torch==[0-9.]*' requirements.txt
}

make_environment() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if new_enough "$candidate"; then
      rm -rf "$1"
      "$candidate" -m venv "$1" || { rm -rf "$1"; fail "$candidate cannot make $1; on Debian or Ubuntu: apt install python3-venv"; }
      return
    fi
  done
  fail "no Python of at least 3.10 found; install one, or name it: PYTHON=/path/to/python3 bash $0"
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

fail() {
  echo "error: $1" >&2
  exit 2
}
