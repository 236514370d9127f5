#!/usr/bin/env bash
# bash tools/check_torch.sh VERSION ... [-- pytest options]
#   Runs the tests of the two cores, the models and training with other versions of torch, one environment each. They
#   justify the range of torch in pyproject.toml. CI does not run this, as an environment takes up to 6 GB.
#   ENVIRONMENTS=FOLDER ...   the folder of the environments, which are kept (default: .torch)
#   PYTHON=python3.12 ...     the interpreter that creates them (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do versions+=("$1"); shift; done
[ $# = 0 ] || shift
[ "${#versions[@]}" -gt 0 ] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
failed=()
for version in "${versions[@]}"; do
  environment="${ENVIRONMENTS:-.torch}/$version"
  if [ ! -e "$environment/ready" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "torch==$version" -e '.[train]' \
      hypothesis pytest pytest-xdist 'transformers>=4.56'
    touch "$environment/ready"
  fi
  echo "torch $version"
  tests="not gpu"
  # FSDP2 of torch 2.6 needs a GPU, and our code refuses it without one.
  [[ "$version" != 2.6* ]] || tests="not gpu and not sharded"
  PYTHONPATH="$PWD" "$environment/bin/python" -m pytest -m "$tests" tests/ewa tests/ops tests/models tests/train "$@" ||
    failed+=("$version")
done
[ "${#failed[@]}" = 0 ] || { echo "failed with torch ${failed[*]}" >&2; exit 1; }
