"""A dataset on disk in any format, before it is loaded as `Clouds` or converted to our layout.

A format is a function that finds its files in a folder and returns a `Source`. Each file is read only when needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pc_ewa.data.clouds import Clouds, MissingSplitError, UpAxis
from pc_ewa.errors import DataError


class Sample(NamedTuple):
    """One shape: coordinates (P, 3) float32 and part labels (P,) uint8. Parts are None without part labels."""

    points: NDArray[np.float32]
    parts: NDArray[np.uint8] | None = None


class Item(NamedTuple):
    """A sample that is not read yet. `read` raises a DataError that names the file and the defect."""

    name: str
    label: int
    split: str
    read: Callable[[], Sample]


@dataclass(frozen=True, eq=False)
class Source:
    """All shapes of a dataset.

    Attributes:
        name: name of the dataset.
        items: every shape, in the order of the dataset.
        class_names: name of every class, in the published order.
        up_axis: the axis that points up.
        licence: the licence in one line.
        split_names: names of all splits, including splits without a shape.
        num_points: number of points of every shape. None if it varies or is not known before reading.
        part_names: names of all parts, for segmentation.
        notes: remarks on the shapes that the user should read before training, one per line.
    """

    name: str
    items: Sequence[Item]
    class_names: tuple[str, ...]
    up_axis: UpAxis
    licence: str
    split_names: tuple[str, ...] = ("train", "test")
    num_points: int | None = None
    part_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def samples(self, items: Sequence[Item], num_points: int | None = None) -> Iterator[Sample]:
        """Yield checked samples that all have the same number of points.

        Args:
            items: the shapes to read.
            num_points: number of points of each sample. Points of a larger shape are drawn and points of a smaller
                one are repeated, at random but the same every time. None keeps the numbers, which must be equal.

        Raises:
            DataError: a file that cannot be read, has no points, NaN or infinity, or a different number of points.
        """
        expected = num_points or self.num_points
        for item in items:
            sample = check_sample(item.read(), f"{self.name}: {item.name}")
            if num_points is not None:
                sample = resize(sample, num_points, seed=item.name)
            expected = expected or len(sample.points)
            if len(sample.points) != expected:
                raise DataError(
                    f"{self.name}: {item.name} has {len(sample.points)} points, not {expected}; give num_points to "
                    "bring all to one number"
                )
            yield sample

    def clouds(self, split: str, num_points: int | None = None) -> Clouds:
        """Read a split into memory.

        Raises:
            MissingSplitError: no shapes in this split.
            DataError: as `samples`.
        """
        items = [item for item in self.items if item.split == split]
        if not items:
            used = sorted({item.split for item in self.items})
            raise MissingSplitError(f"{self.name}: there is no split {split!r}; choose one of: {', '.join(used)}")
        points: NDArray[np.float32] | None = None
        parts: NDArray[np.uint8] | None = None
        for i, sample in enumerate(self.samples(items, num_points)):
            # The first sample gives the size. Writing into one array avoids the second copy that `np.stack` makes.
            if points is None:
                points = np.empty((len(items), *sample.points.shape), np.float32)
                parts = None if sample.parts is None else np.empty(points.shape[:2], np.uint8)
            points[i] = sample.points
            if parts is not None and sample.parts is not None:
                parts[i] = sample.parts
        assert points is not None  # there are items
        return Clouds(
            points=torch.from_numpy(points),
            scale=None,
            labels=torch.tensor([item.label for item in items]),
            class_names=self.class_names,
            up_axis=self.up_axis,
            name=self.name,
            shape_names=tuple(item.name for item in items),
            parts=None if parts is None else torch.from_numpy(parts),
        )


def check_sample(sample: Sample, where: str) -> Sample:
    """Return the sample with float32 points, and refuse one that training cannot use. `where` begins the message.

    Raises:
        DataError: not (P, 3), no points, NaN or infinity, or part labels that do not fit.
    """
    points = np.asarray(sample.points)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
        raise DataError(f"{where}: points are {points.shape} {points.dtype}; expected (points, 3) numbers")
    if len(points) == 0:
        raise DataError(f"{where}: no points; remove it, or get a fresh copy")
    # A float64 beyond float32 becomes infinity, which the next check refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        points = points.astype(np.float32)
    if not np.isfinite(points).all():
        value = points[~np.isfinite(points)][0]
        raise DataError(f"{where}: {value} among the coordinates; remove or repair it")
    parts = sample.parts
    if parts is not None and (parts.shape != points.shape[:1] or parts.dtype != np.uint8):
        raise DataError(f"{where}: {len(points)} points but parts {parts.shape} {parts.dtype}")
    return Sample(np.ascontiguousarray(points), parts)


def resize(sample: Sample, count: int, seed: str) -> Sample:
    """Draw `count` points without replacement, or repeat random points. A seed gives the same points everywhere."""
    number = len(sample.points)
    if number == count:
        return sample
    # The bytes of the text seed the generator, because `hash(str)` differs between processes. RandomState, not
    # default_rng: NEP 19 freezes its stream for all versions of numpy.
    digits = np.frombuffer(seed.encode("utf-8", "surrogateescape") or b"\0", np.uint8).astype(np.uint32)
    random = np.random.RandomState(digits)
    if number > count:
        # Sorted, so that points which are stored in a meaningful order keep it.
        index = np.sort(random.permutation(number)[:count])
    else:
        index = np.concatenate([np.arange(number), random.randint(number, size=count - number)])
    return Sample(sample.points[index], None if sample.parts is None else sample.parts[index])
