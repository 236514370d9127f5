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

  # What is installed is marked by a checksum of what was asked for: a second start installs nothing.
  local file missing=()
  for file in "$@"; do
    [ -e "$(mark "$environment" "$file")" ] || missing+=("$file")
  done
  [ "${#missing[@]}" = 0 ] && return
  echo "installing ${missing[*]} into $environment (once; about 2 GB and a few minutes in all)"
  # torch first and by its exact pin: no other package can then bring a second one.
  local pip=("$PYTHON" -m pip install --disable-pip-version-check)
  [ -t 1 ] || pip+=(--quiet)  # on a terminal pip shows its progress bars
  "${pip[@]}" "$(grep -o '^torch==[0-9.]*' requirements.txt)" || fail "torch could not be installed; see above"
  "${pip[@]}" $(printf -- '-r %s ' "${missing[@]}") || fail "the requirements could not be installed; see above"
  "${pip[@]}" --no-deps -e . || fail "the package could not be installed; see above"
  for file in "${missing[@]}"; do
    touch "$(mark "$environment" "$file")"
  done
}

# mark ENVIRONMENT FILE: the file that says that FILE, as it is now, is installed for this folder.
mark() {
  echo "$1/.pc-ewa-$(cat "$2" pyproject.toml <(echo "$PWD") | cksum | cut -d' ' -f1)"
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
