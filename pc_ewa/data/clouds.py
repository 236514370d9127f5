"""`Clouds`: labelled shapes, all with the same number of points, in memory or memory-mapped, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pc_ewa.data.mapped import MappedFile
from pc_ewa.errors import DataError

UpAxis = Literal["x", "y", "z"]

STORED_TYPES = (torch.float32, torch.float16, torch.int16)


class MissingSplitError(DataError):
    """A sound dataset that has no shapes in the requested split.

    Example:
        >>> try:
        ...     val = pc_ewa.load_dataset("sweethome3d", "val")
        ... except pc_ewa.data.MissingSplitError:
        ...     train, val = pc_ewa.load_dataset("sweethome3d", "train").split_validation(0.1, seed=0)
        >>> len(train) + len(val)
        459
    """


@dataclass(frozen=True, eq=False)
class Clouds:
    """N shapes of P points each.

    Attributes:
        points: the M stored clouds, (M, P, 3), in the stored type: float32, float16 or int16. M is N unless `rows`
            selects some. Contiguous points of a file are memory-mapped: shapes that are never read take no memory.
        scale: coordinates are points / scale for int16. None for the other types.
        labels: (N,) int64, positions in `class_names`.
        class_names: name of every class, including classes without a shape here.
        up_axis: the axis that points up, "x", "y" or "z".
        name: name of the dataset, for logs and reports.
        shape_names: one name per shape. None if the dataset has no names.
        rows: (N,) int64, for each shape its index among the M stored clouds. None selects all, in order.
        parts: (M, P) uint8, the part label of each point, mapped like the points. None without part labels.
        file: the file that points and parts are mapped from. None if they are in memory. It is checked before and
            after each read; a change by another process raises DataError.

    Raises:
        ValueError: fields that do not fit together.

    Example:
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> clouds = pc_ewa.Clouds(torch.rand(4, 64, 3), None, labels, ("cube", "ball"), "z", "toys")
        >>> points, labels = clouds.batch([0, 3])
        >>> points.shape, labels.tolist()
        (torch.Size([2, 64, 3]), [0, 1])
    """

    points: Tensor
    scale: float | None
    labels: Tensor
    class_names: tuple[str, ...]
    up_axis: UpAxis
    name: str
    shape_names: tuple[str, ...] | None = None
    rows: Tensor | None = None
    parts: Tensor | None = None
    file: MappedFile | None = None

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        shape, dtype = tuple(self.points.shape), self.points.dtype
        if len(shape) != 3 or shape[2] != 3 or dtype not in STORED_TYPES:
            raise ValueError(f"points are {shape} {dtype}; expected (N, P, 3) of float32, float16 or int16")
        if (dtype == torch.int16) != (self.scale is not None):
            raise ValueError(f"scale is {self.scale} for {dtype} points; int16 and only int16 has one")
        count = shape[0] if self.rows is None else len(self.rows)
        if tuple(self.labels.shape) != (count,) or self.labels.dtype != torch.int64:
            raise ValueError(f"labels are {tuple(self.labels.shape)} {self.labels.dtype}; expected ({count},) int64")
        if self.shape_names is not None and len(self.shape_names) != count:
            raise ValueError(f"{len(self.shape_names)} shape_names for {count} shapes")
        if self.parts is not None and (tuple(self.parts.shape) != shape[:2] or self.parts.dtype != torch.uint8):
            raise ValueError(f"parts are {tuple(self.parts.shape)} {self.parts.dtype}; expected {shape[:2]} uint8")

    def __len__(self) -> int:
        """Return the number of shapes."""
        return len(self.labels)

    @property
    def num_points(self) -> int:
        """Number of points per shape."""
        return self.points.shape[1]

    @property
    def nbytes(self) -> int:
        """Size of the coordinates of the shapes in bytes."""
        return len(self) * self.num_points * 3 * self.points.element_size()

    @property
    def num_classes(self) -> int:
        """Number of class names."""
        return len(self.class_names)

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return coordinates (B, P, 3) float32 and labels (B,) of these shapes, on the device of the data.

        Raises:
            DataError: the mapped file has changed.
        """
        index = self._index(indices)
        # Advanced indexing copies, so `float()` needs no copy of float32 and the caller may change the batch in place.
        points = self._picked(self.points, index).float()
        if self.scale is not None:
            points /= self.scale
        return points, self.labels[index]

    def part_labels(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the part labels (B, P) int64 of the points of these shapes.

        Raises:
            DataError: a dataset without part labels, or a mapped file that has changed.
        """
        if self.parts is None:
            raise DataError(f"{self.name} has no parts; choose a dataset for segmentation, such as shapenetpart")
        return self._picked(self.parts, self._index(indices)).long()

    def select(self, indices: Tensor | Sequence[int]) -> Clouds:
        """Return separate `Clouds` of these shapes, in the given order. The points are shared, not copied."""
        index = self._index(indices)
        names = self.shape_names
        if names is not None:
            names = tuple(names[i] for i in index.tolist())
        return replace(self, rows=self._stored(index), labels=self.labels[index], shape_names=names)

    def to(self, device: torch.device | str) -> Clouds:
        """Copy the selected shapes to the memory of a device.

        Raises:
            DataError: the mapped file has changed.
        """
        points, parts = self.points, self.parts
        # Select before the transfer: the M stored clouds may be many times the N shapes of this split.
        if self.rows is not None:
            every = torch.arange(len(self), device=self.points.device)
            points, parts = self._picked(points, every), None if parts is None else self._picked(parts, every)
        return replace(
            self,
            points=points.to(device),
            parts=None if parts is None else parts.to(device),
            labels=self.labels.to(device),
            rows=None,
            file=None,
        )

    def show(self, shapes: int | Sequence[int] = 0, **options: Any) -> Any:
        """Show shapes by index in a notebook, a window or a file `path`; see `pc_ewa.viz.show`."""
        # Imported here: `viz` imports this module, and matplotlib is an optional package.
        from pc_ewa.viz import show

        return show(self, shapes, **options)

    def split_validation(self, fraction: float, seed: int) -> tuple[Clouds, Clouds]:
        """Split off a stratified validation part. The same seed gives the same parts on every machine.

        Every class with two shapes or more has at least one shape in each part. The only shape of a class stays in
        training. Both parts keep the order of this dataset.

        Args:
            fraction: share of each class that goes to validation, between 0 and 1.
            seed: 0 to 2**32 - 1.

        Returns:
            The training and the validation part, which are disjoint and together contain every shape.

        Raises:
            ValueError: a fraction that is not between 0 and 1.
            DataError: no class has two shapes, so nothing can be set aside.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"validation fraction is {fraction}; it must be between 0 and 1")
        labels = self.labels.cpu().numpy()
        # RandomState, not default_rng: NEP 19 freezes its stream for all versions of numpy.
        order = np.random.RandomState(seed).permutation(len(labels))
        held_out = np.zeros(len(labels), dtype=bool)
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            # At least one, but never the last shape of a class: a class of one gives min(1, 0) = 0.
            share = min(max(round(fraction * int(count)), 1), int(count) - 1)
            held_out[order[labels[order] == label][:share]] = True
        if not held_out.any():
            raise DataError(
                f"{self.name}: no shapes can be set aside for validation, because each class has only one; "
                "add shapes, or a split named val"
            )
        index = torch.from_numpy(held_out)
        return self.select((~index).nonzero().flatten()), self.select(index.nonzero().flatten())

    def _picked(self, stored: Tensor, index: Tensor) -> Tensor:
        """Copy the rows of `stored`, which is `points` or `parts`, for the shapes at these positions."""
        if self.file is None:
            return stored[self._stored(index)]
        # The check before avoids SIGBUS on a file that shrank. The check after detects a write during the copy, whose
        # result would be half old and half new.
        self.file.check()
        picked = stored[self._stored(index)]
        self.file.check()
        return picked

    def _stored(self, index: Tensor) -> Tensor:
        """Return the rows in `points` of the shapes at these positions."""
        return index if self.rows is None else self.rows[index]

    def _index(self, indices: Tensor | Sequence[int]) -> Tensor:
        index = torch.as_tensor(indices, device=self.points.device)
        # `long()` would turn a mask into the positions 0 and 1, in silence.
        if index.dtype == torch.bool:
            raise ValueError("indices are a boolean mask; give positions: mask.nonzero().flatten()")
        return index.long()


def join(first: Clouds, second: Clouds) -> Clouds:
    """Join two splits of one dataset. Two splits that map the same file stay mapped; others are copied to memory."""
    names = None
    if first.shape_names is not None and second.shape_names is not None:
        names = first.shape_names + second.shape_names
    labels = torch.cat([first.labels, second.labels])
    # A loaded split has `rows` only if it maps the whole file. Two splits of one file share `points`, so joining their
    # indices joins them without a copy.
    if first.rows is not None and second.rows is not None:
        return replace(first, rows=torch.cat([first.rows, second.rows]), labels=labels, shape_names=names)
    points = torch.cat([first.points, second.points])
    parts = None if first.parts is None or second.parts is None else torch.cat([first.parts, second.parts])
    return replace(first, points=points, parts=parts, labels=labels, shape_names=names)
