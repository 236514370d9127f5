"""ScanObjectNN: 15 classes of scanned objects, as published by its authors (datasets/scanobjectnn/README.md).

Uy et al., Revisiting Point Cloud Classification, ICCV 2019. The files are
`{main_split,main_split_nobg}/{training,test}_objectdataset[_augmentedrot_scale75].h5`, each with `data` (n, 2048, 3),
`label` (n,) and `mask` (n, 2048), in which -1 marks background. Points are neither centred nor scaled.
"""

import os
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.contained import names_of, open_hdf5, own_dataset
from pc_ewa.data.dataset import Archive, Dataset, Published
from pc_ewa.data.formats.text_files import FRESH
from pc_ewa.data.published.find import load_prepared, open_source
from pc_ewa.data.source import Item, Sample, Source, check_sample, resize
from pc_ewa.errors import DataError
from pc_ewa.validation import choose

NAME = "scanobjectnn"

VariantName = Literal["obj_bg", "obj_only", "pb_t50_rs"]

# In the published order: a label is a position in this tuple.
CLASS_NAMES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"),
    *("bed", "pillow", "sink", "sofa", "toilet"),
)

NUM_POINTS = 2048

_LICENCE = "ScanObjectNN terms of use, for research: https://hkust-vgd.github.io/scanobjectnn"
_BLOCK = 256  # shapes in memory at a time


class Variant(NamedTuple):
    """A published variant: its folder and files, and the number of samples in each split."""

    folder: str
    file: str
    counts: dict[str, int]
    has_background: bool


VARIANTS = {
    "obj_bg": Variant("main_split", "objectdataset.h5", {"train": 2309, "test": 581}, True),
    "obj_only": Variant("main_split_nobg", "objectdataset.h5", {"train": 2309, "test": 581}, False),
    "pb_t50_rs": Variant("main_split", "objectdataset_augmentedrot_scale75.h5", {"train": 11416, "test": 2882}, True),
}

_PREFIX = {"train": "training_", "test": "test_"}


def load(
    split: str,
    root: Path,
    *,
    variant: VariantName = "pb_t50_rs",
    background: bool = True,
    path: str | None = None,
) -> Clouds:
    """Load "train" or "test", 2048 points each, y up, not normalised.

    Args:
        split: name of the split.
        root: folder of all datasets.
        variant: pb_t50_rs is the hardest, on which papers compare (11,416 and 2,882 shapes). obj_bg and obj_only have
            2,309 and 581 shapes.
        background: False drops the points of the background, and repeats others up to 2048. obj_only has no
            background.
        path: folder of the published or prepared files, or a prepared file. None uses root/scanobjectnn.

    Raises:
        ConfigError: an unknown variant.
        DataError: missing or damaged files, or another number of shapes than published.
    """
    file, form = file_name(variant=variant, background=background), _format(variant, background)
    return load_prepared(NAME, split, root / NAME, file, [form], path)


def source(folder: Path, *, variant: VariantName = "pb_t50_rs", background: bool = True) -> Source:
    """Return the published files of a variant in a folder. Arguments and errors are those of `load`."""
    return open_source(NAME, folder, [_format(variant, background)])


def file_name(*, variant: VariantName = "pb_t50_rs", background: bool = True) -> str:
    """Return the name of the prepared file for these options."""
    dropped = not background and choose("variant", variant, VARIANTS).has_background
    return f"{NAME}_{variant}{'_nobackground' if dropped else ''}.h5"


def _format(variant: str, background: bool) -> "partial[Source | None]":
    known = choose("variant", variant, VARIANTS)
    # A variant without background has nothing to drop, and the mask of its files is not needed.
    return partial(_published, variant=known, background=background or not known.has_background)


def _published(folder: Path, *, variant: Variant, background: bool) -> Source | None:
    """Return the shapes of a variant. None means that the folder has no files of ScanObjectNN."""
    places = (folder, folder / "h5_files", folder / "ScanObjectNN")
    splits = ("main_split", "main_split_nobg")
    base = next((place for place in places if any(os.path.isdir(place / split) for split in splits)), None)
    if base is None:
        return None
    items: list[Item] = []
    for split, count in variant.counts.items():
        file = _File(base / variant.folder / (_PREFIX[split] + variant.file), count, background)
        for row, label in enumerate(file.labels.tolist()):
            name = f"{split}_{row:05d}"  # the files have no names
            items.append(Item(name, label, split, partial(file.read, row, name)))
    return Source(NAME, items, CLASS_NAMES, "y", _LICENCE, num_points=NUM_POINTS)


class _File:
    """A published file. All labels are read at once, and points in blocks of shapes.

    Raises:
        DataError: missing, damaged or incomplete. `read` raises it too.
    """

    def __init__(self, path: Path, count: int, background: bool) -> None:
        self.path, self.count, self.background = path, count, background
        self._begin, self._points, self._mask = -1, np.empty(0), np.empty(0)
        if not os.path.isfile(path):
            raise DataError(f"{path} is missing, or not a file; unpack all of h5_files.zip")
        with open_hdf5(self.path, FRESH) as file:
            self._check("data", file, (count, NUM_POINTS, 3), "f")
            labels = self._check("label", file, (count,), "iuf")[:]
            if not background:
                self._check("mask", file, (count, NUM_POINTS), "if")
        # `isin` also refuses labels that are fractions or NaN, because some files store labels as floats.
        wrong = ~np.isin(labels, np.arange(len(CLASS_NAMES)))
        if wrong.any():
            row = int(wrong.argmax())
            self._fail(f"label of shape {row} is {labels[row]}; allowed: 0 to {len(CLASS_NAMES) - 1}")
        self.labels: NDArray[np.int64] = labels.astype(np.int64)

    def read(self, row: int, name: str) -> Sample:
        """Return a shape. Without background, `name` seeds the choice of the repeated points."""
        begin = row - row % _BLOCK
        # Reading the shapes in order, as conversion does, reads each block once.
        if begin != self._begin:
            rows = slice(begin, min(begin + _BLOCK, self.count))
            with open_hdf5(self.path, FRESH) as file:
                self._points = self._check("data", file, (self.count, NUM_POINTS, 3), "f")[rows]
                if not self.background:
                    self._mask = self._check("mask", file, (self.count, NUM_POINTS), "if")[rows]
            self._begin = begin
        points = self._points[row - begin]
        if self.background:
            return Sample(points)
        mask = self._mask[row - begin]
        if np.isnan(mask).any():
            self._fail(f"mask of shape {row} has nan")
        if not (mask != -1).any():
            self._fail(f"shape {row} has only points of the background; or keep them: background=true")
        return resize(check_sample(Sample(points[mask != -1]), f"{self.path}: shape {row}"), NUM_POINTS, seed=name)

    def _check(self, key: str, file: h5py.File, shape: tuple[int, ...], kinds: str) -> h5py.Dataset:
        found = own_dataset(file, key, self.path)
        if found is None:
            self._fail(f"there is no dataset {key} (found: {names_of(file)})")
        if found.shape is None or found.shape[1:] != shape[1:] or found.dtype.kind not in kinds:
            wanted = ", ".join(["shapes", *map(str, shape[1:])])
            self._fail(f"{key} is {found.shape} {found.dtype}; expected ({wanted}) numbers")
        # A shortened file would give a result on fewer shapes that looks like one on all of them.
        if found.shape[0] != shape[0]:
            raise DataError(
                f"{self.path}: {key} has {found.shape[0]} shapes, the published file {shape[0]}; {FRESH}, or load "
                "your subset as dataset hdf5"
            )
        return found

    def _fail(self, defect: str) -> NoReturn:
        raise DataError(f"{self.path}: {defect}; {FRESH}")


DATASET = Dataset(
    name=NAME,
    published=Published(CLASS_NAMES, NUM_POINTS),
    load=load,
    source=source,
    file_name=file_name,
    title="ScanObjectNN: scans of real objects in 15 classes (variants pb_t50_rs, obj_bg, obj_only)",
    licence="research use, on the terms of its form",
    terms=(
        "The authors ask everybody to fill in their form before the download: https://forms.gle/ZZRnnmaUdwfRucoy7 "
        "(project page: https://hkust-vgd.github.io/scanobjectnn). Do that first: the files here come from the "
        "authors' server, which does not answer at times, or from a copy that others keep."
    ),
    archives=(
        Archive(
            "h5_files.zip",
            (
                "https://hkust-vgd.ust.hk/scanobjectnn/h5_files.zip",
                "https://download.cs.stanford.edu/orion/scanobjectnn/h5_files.zip",
            ),
            size=13_099_259_542,
            digests=("md5:36876af479f9ad39abad5ebcd89038dd",),
        ),
    ),
    manual=(
        "main_split/ and main_split_nobg/ of h5_files.zip in datasets/scanobjectnn/h5_files; single files are "
        "copied at https://huggingface.co/datasets/cminst/ScanObjectNN"
    ),
)
