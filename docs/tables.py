"""Write the tables of README.md and docs/results.md from docs/results/*.json: python docs/tables.py [--check].

Between `<!-- results -->` and `<!-- /results -->` goes one line per experiment, between `<!-- table NAME -->` and
`<!-- /table -->` all of docs/results/NAME.json, with its curves where there is a NAME.png. docs/results/forest.png
shows the difference that EWA makes in each experiment.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from pc_ewa.compare.forest import band, digest, draw_forest, forest_rows
from pc_ewa.compare.report import as_markdown, as_summary
from pc_ewa.compare.results import read_results
from pc_ewa.errors import ConfigError, exit_on_error
from pc_ewa.files import write_text, write_whole
from pc_ewa.validation import choose

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md")
FOREST = "forest.png"

_SUMMARY = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)
_TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- /table -->)", flags=re.DOTALL)


@exit_on_error
def main(arguments: list[str] | None = None, root: Path = REPOSITORY) -> None:
    """Rewrite what is stale, or only say what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is stale")
    check = parser.parse_args(arguments).check
    results = {path.stem: read_results(path) for path in sorted((root / "docs/results").glob("*.json"))}
    texts = {page: (root / page).read_text(encoding="utf-8") for page in PAGES}
    fresh = {page: fill(text, results, root, page) for page, text in texts.items()}
    stale = [page for page in PAGES if texts[page] != fresh[page]]
    for page in stale:
        if not check:
            write_text(root / page, fresh[page])
        print(f"{page} is stale: run python docs/tables.py" if check else f"{page} was rewritten")
    rows, forest = forest_rows([*results.values()]), root / "docs/results" / FOREST
    if rows and not (forest.is_file() and digest(rows).encode() in forest.read_bytes()):
        stale.append(str(forest.relative_to(root)))
        if not check:
            write_whole(forest, lambda file: draw_forest(rows, file, band([*results.values()])))
        print(f"{stale[-1]} is stale: run python docs/tables.py" if check else f"{stale[-1]} was drawn")
    if check and stale:
        sys.exit(1)


def fill(text: str, results: dict[str, dict[str, Any]], root: Path, page: str) -> str:
    """Put fresh tables between the markers of a page.

    Raises:
        ConfigError: a marker without its end, or one for results that there are not.
    """
    for kind, pattern in (("results", _SUMMARY), ("table", _TABLE)):
        begun, ended = len(re.findall(f"<!-- {kind}\\b", text)), len(re.findall(f"<!-- /{kind} -->", text))
        if not begun == ended == len(pattern.findall(text)):
            raise ConfigError(
                f"{page}: <!-- {kind} ... --> and <!-- /{kind} --> do not match; give each its other half"
            )
    text = _SUMMARY.sub(lambda found: f"{found[1]}{as_summary([*results.values()])}{found[2]}", text)

    def table(found: re.Match[str]) -> str:
        name = found[2]
        body = as_markdown(choose(f"{page}: table", name, results))
        picture = root / "docs/results" / f"{name}.png"
        if picture.is_file():
            title = f"{results[name]['title']}: curves"
            body += f"\n![{title}]({os.path.relpath(picture, (root / page).parent)})\n"
        return f"{found[1]}{body}{found[3]}"

    return _TABLE.sub(table, text)


if __name__ == "__main__":
    sys.exit(main())
