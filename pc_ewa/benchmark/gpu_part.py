"""`Part`: one part of benchmarks/gpu.sh while it is measured, and its file."""

import datetime
import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pc_ewa.benchmark.gpu_plan import Plan
from pc_ewa.benchmark.report import Table, as_text, hardware
from pc_ewa.files import write_text


@dataclass
class Part:
    """One part while it is measured. Its file is rewritten after every table, so that a timeout loses no result.

    Attributes:
        name: of the part.
        out: the folder of its file.
        plan: sizes.
        deadline: the value of `time.monotonic` at which the part should have ended.
        tables: the results, for readers.
        numbers: the results, for programs.
        problems: the failures, one line each.
        began: the value of `time.monotonic` at the start.
    """

    name: str
    out: Path
    plan: Plan
    deadline: float
    tables: list[Table] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def show(self, tables: Sequence[Table], **numbers: Any) -> None:
        """Replace the tables, add the numbers, print the last table and write the file."""
        self.tables = [*tables]
        self.numbers |= numbers
        print(as_text(self.tables[-1]), flush=True)
        self.write()

    def problem(self, what: str) -> None:
        """Record a failure. The part continues."""
        print(f"problem: {what}", flush=True)
        self.problems.append(what)
        self.write()

    def write(self) -> None:
        """Write the file of the part."""
        content = {
            "part": self.name,
            "rehearsal": self.plan.rehearsal,
            "date": datetime.date.today().isoformat(),
            "hardware": hardware(self.plan.device),
            "triton": _version_of("triton"),
            "seconds": round(time.monotonic() - self.began, 1),
            "problems": self.problems,
            "tables": [table._asdict() for table in self.tables],
            "numbers": self.numbers,
        }
        write_text(self.out / f"{self.name}.json", json.dumps(content, indent=1) + "\n")


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
