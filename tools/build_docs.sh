#!/usr/bin/env bash
# bash tools/build_docs.sh [options of properdocs build]
#   Builds the docs site into site/, where any warning is an error; open site/index.html. Its environment, .docs, is made
#   once (DOCS_ENV=FOLDER takes another). It needs neither torch nor a network after that.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  -h | --help) sed -n '2,4s/^# \{0,1\}//p' tools/build_docs.sh; exit 0 ;;
esac

place="${DOCS_ENV:-.docs}"
if [ ! -x "$place/bin/properdocs" ]; then
  python3 -m venv "$place"
  "$place/bin/pip" install --quiet -r requirements-docs.txt
fi
exec "$place/bin/properdocs" build --quiet --strict --config-file mkdocs.yml --site-dir site "$@"
