"""TensorBoard: event files in the run folder, for `tensorboard --logdir`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pc_ewa.package import missing_package
from pc_ewa.text import printable
from pc_ewa.trackers.backend import Backend, Cell, Cloud, Floats, TrackedRun

_CELL = 12  # pixels of a cell of the confusion matrix


class TensorboardBackend(Backend):
    """A tracker that writes event files to `tensorboard/` of the run folder, by `torch.utils.tensorboard`.

    Args:
        run: the run to show.
    """

    title = "TensorBoard"

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of later steps, left by an interrupted run, stay in the files. TensorBoard hides them because of this
        # step.
        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.resumed_step + 1)
        self._step = run.resumed_step
        self._text("config", run.config)

    @classmethod
    def wanted(cls, **settings: Any) -> bool:
        """Return True, because the section switches the tracker on.

        Raises:
            MissingPackageError: TensorBoard is not installed.
        """
        try:
            import tensorboard  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing_package(error, "a config with tensorboard") or error from None
        return True

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add numbers under "Scalars"."""
        self._step = step
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Add a table under "Text", and its clouds under "Mesh", by the numbers of their rows."""
        for number, row in enumerate(rows, 1):
            for cell in row:
                if isinstance(cell, Cloud):
                    self._cloud(step, f"{name}/{number}", cell)
        shown = [[f"see {name}/{n}" if isinstance(c, Cloud) else c for c in row] for n, row in enumerate(rows, 1)]
        self._writer.add_text(name, _markdown(columns, shown), step)

    def confusion(self, step: int, class_names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Add the matrix as a table, and as an image with each row shaded by its shares."""
        rows = [[name, *row] for name, row in zip(class_names, counts, strict=True)]
        self._writer.add_text("confusion_matrix", _markdown(["true, then taken for", *class_names], rows), step)
        self._writer.add_image("confusion_matrix", _shaded(np.asarray(counts, dtype=float)), step, dataformats="HWC")

    def clouds(self, step: int, name: str, clouds: Sequence[Cloud]) -> None:
        """Add clouds under "Mesh", with their titles."""
        for number, cloud in enumerate(clouds, 1):
            self._cloud(step, f"{name}/{number}", cloud)
        titles = [[f"{name}/{number}", cloud.title] for number, cloud in enumerate(clouds, 1)]
        self._writer.add_text(name, _markdown(["mesh", "title"], titles), step)

    def page(self, step: int, name: str, path: Path) -> None:
        """Add the path of the file, because TensorBoard cannot show pages."""
        self._writer.add_text(name, f"`{path}`", step)

    def file(self, name: str, path: Path, metadata: Mapping[str, Any], aliases: Sequence[str] = ()) -> None:
        """Add the path of the file and its metadata, because TensorBoard cannot store files."""
        tag = "/".join([name, *aliases])
        self._text(tag, {"path": str(path), **metadata})

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Add the summary as text."""
        self._text("summary", summary)

    def close(self, failed: bool) -> list[str]:
        """Write pending events."""
        self._writer.close()
        return []

    def _text(self, name: str, content: Mapping[str, Any]) -> None:
        lines = json.dumps(content, indent=2, default=str).splitlines()
        self._writer.add_text(name, "\n".join(f"    {line}" for line in lines), self._step)  # code in Markdown

    def _cloud(self, step: int, name: str, cloud: Cloud) -> None:
        points = torch.as_tensor(np.asarray(cloud.points, dtype=np.float32))[None]
        colours = torch.as_tensor(np.round(255 * np.asarray(cloud.colours)).astype(np.uint8))[None]
        self._writer.add_mesh(name, points, colours, global_step=step)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else printable(str(value), None)
    # TensorBoard renders Markdown: names of files and classes must neither end a cell nor start a tag.
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _shaded(counts: Floats) -> Floats:
    """Draw a matrix as an image (H, W, 3): white is 0, blue is all samples of a class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ink = shares[..., None] * (1 - np.array([0.0, 0.447, 0.698]))
    return (1 - ink).repeat(_CELL, axis=0).repeat(_CELL, axis=1).astype(np.float32)
