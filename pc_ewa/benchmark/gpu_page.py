"""The results of benchmarks/gpu.sh as Markdown: python -m pc_ewa.benchmark.gpu_page OUT [--into docs/gpu.md]."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc_ewa.benchmark.report import Table, as_markdown
from pc_ewa.errors import ConfigError, exit_on_error
from pc_ewa.files import write_text

PARTS = ("tests", "steps", "compiled", "syncs", "ops", "train")  # in the order of the page
MEASURED = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", flags=re.DOTALL)


@exit_on_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or put them between the markers of a page."""
    parser = argparse.ArgumentParser(prog="python -m pc_ewa.benchmark.gpu_page", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder that benchmarks/gpu.sh wrote")
    parser.add_argument("--into", type=Path, metavar="PAGE.md", help="a page with <!-- measured --> in it")
    options = parser.parse_args(arguments)
    parts = read(options.out)
    if options.into is None:
        print(page(parts))
        return
    if any(part["rehearsal"] for part in parts):
        raise ConfigError(f"{options.out} is a rehearsal on a CPU, which measured nothing; run it on a GPU")
    if not options.into.is_file() or not MEASURED.search(text := options.into.read_text(encoding="utf-8")):
        raise ConfigError(f"--into {options.into}: it lacks <!-- measured --> and <!-- /measured -->")
    fresh = page(parts)
    # A function, not a string, as replacement: backslashes in the tables would be read as group references.
    write_text(options.into, MEASURED.sub(lambda marks: f"{marks[1]}\n{fresh}\n\n{marks[2]}", text))


def read(out: Path) -> list[dict[str, Any]]:
    """Read the files of the measured parts.

    Raises:
        ConfigError: no file, or one that benchmarks/gpu.sh did not write.
    """
    parts = []
    for name in PARTS:
        path = out / f"{name}.json"
        if path.is_file():
            try:
                part = json.loads(path.read_text(encoding="utf-8"))
                [Table(**table) for table in part["tables"]]
                # Access every key that `page` reads, so that a wrong file fails here with its name.
                part["rehearsal"], part["date"], part["hardware"], part["problems"], part["seconds"]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path} was not written by benchmarks/gpu.sh; measure it again") from None
            parts.append(part)
    if not parts:
        raise ConfigError(f"{out} holds no {PARTS[0]}.json or the like; run benchmarks/gpu.sh first")
    return parts


def page(parts: Sequence[dict[str, Any]]) -> str:
    """Return all tables, each part under its date and hardware."""
    return "\n\n".join(map(_section, parts))


def _section(part: dict[str, Any]) -> str:
    rehearsed = "A rehearsal on a CPU: these numbers mean nothing. " if part["rehearsal"] else ""
    about = f"{rehearsed}{part['date']}, {part['hardware']}, triton {part['triton']}; {part['seconds']:.0f} s."
    tables = [as_markdown(Table(**table)) for table in part["tables"]] or ["Nothing was measured."]
    problems = [f"- {problem}" for problem in part["problems"]]
    return "\n\n".join(
        [f"### {part['part']}", about, *tables, *(["Problems:", "\n".join(problems)] if problems else [])]
    )


if __name__ == "__main__":
    sys.exit(main())
