"""Tables and targets as text for the terminal and as a page of Markdown."""

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch

from pc_ewa import ops

PAGE = Path(__file__).with_name("page.md")  # the template of the page


class Table(NamedTuple):
    """Rows of text under a header, with notes below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


class Target(NamedTuple):
    """A target: `value` should be at least `bound`, or at most with `at_most`. A value of None was not measured."""

    what: str
    value: float | None
    bound: float
    unit: str = "x"
    at_most: bool = False
    detail: str = ""

    def describe(self) -> str:
        """Return a line with the target, the value, and "met" or "NOT met"."""
        bound = f"{self.what}: {'at most' if self.at_most else 'at least'} {self.bound:g}{self.unit}"
        if self.value is None:
            return f"{bound}: not measured{self.detail}"
        met = self.value <= self.bound if self.at_most else self.value >= self.bound
        return f"{bound}: {'met' if met else 'NOT met'}, {number(self.value)}{self.unit}{self.detail}"


@dataclass
class Report:
    """All results of the op benchmarks.

    Attributes:
        device: of the measurement.
        rounds: number of timings of each contender.
        tables: by section. A section that was left out has none.
        targets: each with its measured value.
        used: the packages that took part.
        missing: the reason by missing package.
    """

    device: torch.device
    rounds: int
    tables: dict[str, list[Table]]
    targets: list[Target] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)


def number(value: float) -> str:
    """Format a number with about three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_text(table: Table) -> str:
    """Format a table for a terminal, with aligned columns."""
    widths = _widths(table)
    lines = ["  ".join(_pad(row, widths)).rstrip() for row in (table.header, *table.rows)]
    rule = "-" * max(map(len, lines))
    return "\n".join([table.title, rule, lines[0], rule, *lines[1:], *table.notes, ""])


def as_markdown(table: Table) -> str:
    """Format a table as Markdown with aligned columns, readable as plain text too."""
    cells = table._replace(
        header=[_escape(cell) for cell in table.header], rows=[[_escape(cell) for cell in row] for row in table.rows]
    )
    widths = _widths(cells)
    lines = [f"| {' | '.join(_pad(row, widths))} |" for row in (cells.header, *cells.rows)]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    notes = "".join(f"\n\n{_escape(note)}" for note in table.notes)
    return "\n".join([f"**{table.title}**", "", lines[0], f"|{rule}|", *lines[1:]]) + notes


def hardware(device: torch.device) -> str:
    """Return a line about the machine: CPU or GPU, cores, threads, versions."""
    # The affinity counts the cores that this process may use, which in a container are fewer than os.cpu_count().
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    return (
        f"{gpu}{_cpu_name()}, {cores} cores, {torch.get_num_threads()} torch threads; torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def backend(device: torch.device) -> str:
    """Return the backend of our ops, with the reason."""
    chosen = ops.backend(device)
    return f"{chosen.name} ({chosen.reason})"


def packages(report: Report) -> str:
    """Return a line with the libraries that took part, their versions, and the missing ones."""
    used = ", ".join(map(_version, sorted(report.used)))
    missing = ", ".join(f"{name} ({reason})" for name, reason in sorted(report.missing.items()))
    return f"{used or 'none but torch'}{f'; without {missing}' if missing else ''}"


def write_page(path: Path, report: Report, command: str) -> None:
    """Write the page from its template. A section that was not measured has a line that states so."""
    tables = {
        name: "\n\n".join(map(as_markdown, tables)) or "Not measured in this run."
        for name, tables in report.tables.items()
    }
    settings = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "PC_EWA_OPS") if name in os.environ]
    text = Template(PAGE.read_text(encoding="utf-8")).substitute(
        tables,
        command=" ".join([*settings, command]),
        date=datetime.date.today().isoformat(),
        hardware=hardware(report.device),
        backend=backend(report.device),
        packages=packages(report),
        rounds=report.rounds,
        targets="\n".join(f"- {_escape(target.describe())}" for target in report.targets) or "None in this run.",
    )
    path.write_text(text, encoding="utf-8")


def _widths(table: Table) -> list[int]:
    return [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Align names to the left, numbers to the right."""
    return [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]


def _escape(text: str) -> str:
    return text.replace("|", r"\|")


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:  # the CUDA build of a library may have another package name
        return name


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
