"""The run folder's checkpoints: written whole or not at all, the newest few kept, last and best always there."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pc_ewa.errors import CheckpointError
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.models.checkpoints.write import save_atomically

LAST, BEST = "last.pt", "best.pt"


class Checkpoints:
    """`checkpoints/` of a run: step-N.pt (the newest `keep`), last.pt (the newest of them) and best.pt."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, content: Mapping[str, Any], step: int, best: bool) -> None:
        """Save the state after `step` optimizer steps; `best` also marks it the best by validation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The step comes last: a run resumes from there, so what a kill cuts off before it is done again, all of it.
        names = [LAST, f"step-{step:08d}.pt"]
        if best:
            names.insert(0, BEST)
        first = self.folder / names[0]
        save_atomically(content, first)
        for name in names[1:]:
            self._point(name, first)
        self.tidy()

    def tidy(self) -> None:
        """Remove checkpoints beyond the newest few, and what a kill in mid-write left."""
        for path in (*self.folder.glob(".*.tmp"), *self._steps()[: -self.keep]):
            path.unlink()

    def newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint, or None when there is none yet.

        Raises:
            CheckpointError: it is damaged; the message says which one before it there is to go on from.
        """
        steps = self._steps()
        if not steps:
            return None
        try:
            return read_checkpoint(steps[-1])
        except CheckpointError as error:
            older = [step.name for step in steps[-2:-1]]
            rescue = f"delete it to go on from {older[0]}" if older else "delete the run folder to start anew"
            raise CheckpointError(f"{error}; {rescue}") from None

    def _point(self, name: str, path: Path) -> None:
        # A hard link costs no space and outlives the pruning of the step it points to.
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            save_atomically(read_checkpoint(path), temporary)
        temporary.replace(self.folder / name)

    def _steps(self) -> list[Path]:
        found = (p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8,}\.pt", p.name))
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))
