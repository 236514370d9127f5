"""ShapeNetPart: 16 categories with 50 parts (datasets/shapenetpart/README.md).

Yi et al., A Scalable Active Framework for Region Annotation in 3D Shape Collections, SIGGRAPH Asia 2016, with normals:
`shapenetcore_partanno_segmentation_benchmark_v0_normal`. The files are `<synset>/<model>.txt` with lines
"x y z nx ny nz part", `synsetoffset2category.txt`, and `train_test_split/shuffled_{train,val,test}_file_list.json`.
"""

import io
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.clouds import Clouds, MissingSplitError, join
from pc_ewa.data.dataset import Dataset, Published
from pc_ewa.data.formats.text_files import (
    FRESH,
    names_in,
    one_line,
    read_lines,
    read_text,
    refuse_missing,
    refuse_repeated,
    shown,
)
from pc_ewa.data.published.find import load_prepared, open_source
from pc_ewa.data.published.shapenet55 import SHAPENET_LICENCE, SHAPENET_TERMS
from pc_ewa.data.source import Item, Sample, Source, check_sample, resize
from pc_ewa.errors import ConfigError, DataError

NAME = "shapenetpart"

# In the published order: a label is a position in this dict.
CATEGORIES: dict[str, str] = {
    "Airplane": "02691156",
    "Bag": "02773838",
    "Cap": "02954340",
    "Car": "02958343",
    "Chair": "03001627",
    "Earphone": "03261776",
    "Guitar": "03467517",
    "Knife": "03624134",
    "Lamp": "03636649",
    "Laptop": "03642806",
    "Motorbike": "03790512",
    "Mug": "03797390",
    "Pistol": "03948459",
    "Rocket": "04099429",
    "Skateboard": "04225987",
    "Table": "04379243",
}

# The part labels of each category. No two categories share a part.
PARTS: dict[str, range] = {
    "Airplane": range(0, 4),
    "Bag": range(4, 6),
    "Cap": range(6, 8),
    "Car": range(8, 12),
    "Chair": range(12, 16),
    "Earphone": range(16, 19),
    "Guitar": range(19, 22),
    "Knife": range(22, 24),
    "Lamp": range(24, 28),
    "Laptop": range(28, 30),
    "Motorbike": range(30, 36),
    "Mug": range(36, 38),
    "Pistol": range(38, 41),
    "Rocket": range(41, 44),
    "Skateboard": range(44, 47),
    "Table": range(47, 50),
}

# The dataset has no names for its parts.
PART_NAMES = tuple(f"{category} {part}" for category, parts in PARTS.items() for part in parts)

SPLITS = ("train", "val", "test")

_FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
_DEFAULT_POINTS, _MOST_POINTS = 2048, 100_000
_ENTRY = re.compile(r"shape_data/(\d{8})/([\w-][\w.-]{0,200})", re.ASCII)
_LARGEST_FILE = 2**24  # bytes; the published ones have 0.2 million


def load(
    split: str, root: Path, *, stored_points: int = 2048, trainval: bool = False, path: str | None = None
) -> Clouds:
    """Load "train" (12,137 shapes), "val" (1,870) or "test" (2,874) with part labels, y up, not normalised.

    Args:
        split: name of the split.
        root: folder of all datasets.
        stored_points: number of points of each shape, drawn without replacement and the same every time. A shape with
            fewer points repeats some.
        trainval: let "train" be train and val together, as in the published results. There is no "val" then.
        path: folder of the published or prepared files, or the prepared file. None uses root/shapenetpart.

    Raises:
        ConfigError: stored_points out of range.
        MissingSplitError: no such split.
        DataError: missing or damaged files, or a prepared file with another number of points.
    """
    if trainval and split == "val":
        raise MissingSplitError(f"{NAME}: trainval=true puts val into train; choose train or test")
    if trainval and split == "train":
        return join(*(load(name, root, stored_points=stored_points, path=path) for name in ("train", "val")))
    file = file_name(stored_points=stored_points)
    clouds = load_prepared(NAME, split, root / NAME, file, [partial(_published, stored_points=stored_points)], path)
    if clouds.num_points != stored_points:
        raise DataError(
            f"{path or root / NAME / file} has {clouds.num_points} points per shape, not "
            f"stored_points={stored_points}; set stored_points to what it has, or prepare another file"
        )
    return clouds


def source(folder: Path, *, stored_points: int = 2048) -> Source:
    """Return the published files in a folder, with `stored_points` points of each. Errors are those of `load`."""
    _check(stored_points)
    return open_source(NAME, folder, [partial(_published, stored_points=stored_points)])


def file_name(*, stored_points: int = 2048) -> str:
    """Return the name of the prepared file for this number of points."""
    _check(stored_points)
    return f"{NAME}.h5" if stored_points == _DEFAULT_POINTS else f"{NAME}_{stored_points}.h5"


def _check(stored_points: int) -> None:
    if not 1 <= stored_points <= _MOST_POINTS:
        raise ConfigError(f"stored_points={stored_points}: should be 1 to {_MOST_POINTS}; shapes have 2,600 on average")


def _published(folder: Path, *, stored_points: int) -> Source | None:
    """Return all shapes, in the order of the lists. None means that the folder has no files of ShapeNetPart."""
    for base in (folder, folder / _FOLDER):
        if any(os.path.exists(base / mark) for mark in ("synsetoffset2category.txt", "train_test_split")):
            _check_categories(base / "synsetoffset2category.txt")
            items: list[Item] = []
            seen: set[str] = set()
            for split in SPLITS:
                items += _items(base, split, stored_points, seen)
            return Source(NAME, items, tuple(CATEGORIES), "y", SHAPENET_LICENCE, SPLITS, stored_points, PART_NAMES)
    return None


def _check_categories(path: Path) -> None:
    """Refuse a table of categories that contradicts CATEGORIES. It may have fewer categories."""
    for line in read_lines(path):
        category, _, synset = line.partition("\t")
        if CATEGORIES.get(category.strip()) != synset.strip():
            raise DataError(f"{path} has the line {shown(line)}, which is not of ShapeNetPart; {FRESH}")


def _items(base: Path, split: str, stored_points: int, seen: set[str]) -> list[Item]:
    """Return the shapes in the list of a split."""
    path = base / "train_test_split" / f"shuffled_{split}_file_list.json"
    labels = {synset: label for label, synset in enumerate(CATEGORIES.values())}
    names, pairs = _read_list(path), []
    for name in names:
        match = _ENTRY.fullmatch(name)
        if not match or match[1] not in labels:
            raise DataError(f"{path} has {shown(name)}, not shape_data/<synset>/<model> of the 16 categories; {FRESH}")
        pairs.append((match[1], match[2]))
    refuse_repeated(path, names, seen)
    present = {synset: names_in(base / synset) for synset in {synset for synset, _ in pairs}}
    refuse_missing(path, names, (f"{s}/{m}.txt" for s, m in pairs if f"{m}.txt" not in present[s]))
    categories = tuple(CATEGORIES)
    return [
        Item(
            name := f"{synset}/{model}",
            labels[synset],
            split,
            partial(_read, os.path.join(base, f"{name}.txt"), categories[labels[synset]], name, stored_points),
        )
        for synset, model in pairs
    ]


def _read_list(path: Path) -> list[str]:
    text = read_text(path)
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {one_line(error)}; {FRESH}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} is not a list of names; {FRESH}")
    return names


def _read(path: str, category: str, name: str, stored_points: int) -> Sample:
    """Read a shape and draw its points, seeded by `name`."""
    table, parts = _table(path), PARTS[category]
    # Checked before the cast to uint8, which would wrap a label of 259 to 3.
    wrong = ~np.isin(table[:, 6], parts)
    if wrong.any():
        row = int(wrong.argmax())
        allowed = f"a shape of {category} has {parts.start} to {parts.stop - 1}"
        raise DataError(f"{path}: part of point {row} is {table[row, 6]:g}; {allowed}; {FRESH}")
    sample = check_sample(Sample(table[:, :3], table[:, 6].astype(np.uint8)), path)  # type: ignore[arg-type]
    return resize(sample, stored_points, seed=name)


def _table(path: str) -> NDArray[np.float64]:
    """Read the lines of seven numbers."""
    text = read_text(path, _LARGEST_FILE)
    if not text.strip():
        raise DataError(f"{path} has no points; {FRESH}")
    try:
        table = np.loadtxt(io.StringIO(text), comments=None, ndmin=2)
    # Mostly ValueError, but damaged text also raises others.
    except Exception as error:
        raise DataError(f"{path} is not a table of numbers: {one_line(error)}; {FRESH}") from error
    if table.shape[1] != 7:
        raise DataError(f"{path} has {table.shape[1]} columns, not the 7 of x y z nx ny nz part; {FRESH}")
    return table


DATASET = Dataset(
    name=NAME,
    load=load,
    source=source,
    file_name=file_name,
    title="ShapeNetPart: 16,881 shapes in 16 categories, each point labelled with one of 50 parts",
    licence="non-commercial research and education, after registration",
    terms=SHAPENET_TERMS,
    manual=(
        "get shapenetcore_partanno_segmentation_benchmark_v0_normal.zip with a browser from "
        "https://drive.google.com/file/d/1W3SEE-dY1sxvlECcOwWSDYemwHEUbJIS (Stanford's address is dead) and unpack "
        "it to datasets/shapenetpart/shapenetcore_partanno_segmentation_benchmark_v0_normal"
    ),
    parts=PARTS,
    published=Published(tuple(CATEGORIES), _DEFAULT_POINTS),
)
