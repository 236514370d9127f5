"""ShapeNet-55, the pre-training set of Point-BERT and Point-MAE (datasets/shapenet55/README.md).

Yu et al., PoinTr, ICCV 2021, from ShapeNetCore, Chang et al. 2015. The files are `shapenet_pc/<synset>-<model>.npy`,
(8192, 3) float32, and the lists `ShapeNet-55/{train,test}.txt` with one file name a line.
"""

import os
import re
from functools import partial
from pathlib import Path

from pc_ewa.data.clouds import Clouds, join
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.formats.npy import parse_npy
from pc_ewa.data.formats.text_files import (
    FRESH,
    names_in,
    one_line,
    read_file,
    read_lines,
    refuse_missing,
    refuse_repeated,
    shown,
)
from pc_ewa.data.published.find import load_prepared, open_source
from pc_ewa.data.source import Item, Sample, Source
from pc_ewa.errors import DataError

NAME = "shapenet55"

FILE = f"{NAME}.h5"

NUM_POINTS = 8192

# Sorted, so that a label is a position in the list. Names are the first of each synset in the taxonomy of
# ShapeNetCore.v2.
_SYNSETS = """
02691156 airplane, 02747177 ashcan, 02773838 bag, 02801938 basket, 02808440 bathtub, 02818832 bed, 02828884 bench,
02843684 birdhouse, 02871439 bookshelf, 02876657 bottle, 02880940 bowl, 02924116 bus, 02933112 cabinet,
02942699 camera, 02946921 can, 02954340 cap, 02958343 car, 02992529 cellular telephone, 03001627 chair,
03046257 clock, 03085013 computer keyboard, 03207941 dishwasher, 03211117 display, 03261776 earphone,
03325088 faucet, 03337140 file, 03467517 guitar, 03513137 helmet, 03593526 jar, 03624134 knife, 03636649 lamp,
03642806 laptop, 03691459 loudspeaker, 03710193 mailbox, 03759954 microphone, 03761084 microwave,
03790512 motorcycle, 03797390 mug, 03928116 piano, 03938244 pillow, 03948459 pistol, 03991062 pot, 04004475 printer,
04074963 remote control, 04090263 rifle, 04099429 rocket, 04225987 skateboard, 04256520 sofa, 04330267 stove,
04379243 table, 04401088 telephone, 04460130 tower, 04468005 train, 04530566 vessel, 04554684 washer
"""

SYNSETS: dict[str, str] = {entry.split()[0]: entry.strip()[9:] for entry in _SYNSETS.split(",")}

SHAPENET_TERMS = (
    "ShapeNet is for non-commercial research and education. Register with ShapeNet and accept its terms before you use "
    "any file made from it: https://shapenet.org (Register, and Terms of Use)."
)
SHAPENET_LICENCE = "ShapeNet terms of use, non-commercial research and education: https://shapenet.org/terms"
_ENTRY = re.compile(r"(\d{8})-[\w.-]{1,200}\.npy", re.ASCII)
_LARGEST_FILE = 2**20  # bytes; float64 would take 196,736


def load(split: str, root: Path, *, whole: bool = False, path: str | None = None) -> Clouds:
    """Load "train" (41,952 shapes) or "test" (10,518), 8192 points each, y up, not normalised.

    The published files take 5 GB of memory. The prepared file is memory-mapped and takes none.

    Args:
        split: name of the split.
        root: folder of all datasets.
        whole: let "train" be train and test together, as in the official pre-training. "test" stays as it is.
        path: folder of the published or prepared files, or the prepared file. None uses root/shapenet55.

    Raises:
        DataError: missing or damaged files.
    """
    folder = root / NAME
    if not whole or split != "train":
        return load_prepared(NAME, split, folder, FILE, [_published], path)
    place = folder if path is None else Path(path).expanduser()
    # Published files: one source puts all shapes into "train". Joining two loaded splits would copy them in memory.
    if not os.path.isfile(place / FILE) and not os.path.isfile(place):
        return open_source(NAME, place, [partial(_published, whole=True)]).clouds("train")
    return join(*(load_prepared(NAME, name, folder, FILE, [], path) for name in ("train", "test")))


def source(folder: Path) -> Source:
    """Return the published files in a folder, train and test. Errors are those of `load`."""
    return open_source(NAME, folder, [_published])


def _published(folder: Path, whole: bool = False) -> Source | None:
    """Return all shapes, in the order of the lists. `whole` puts the test shapes into train."""
    places = (folder, folder / "ShapeNet55-34", folder / "ShapeNet55")
    base = next((place for place in places if os.path.isdir(place / "shapenet_pc")), None)
    if base is None:
        for place in places:
            if os.path.isdir(place / "ShapeNet-55"):
                raise DataError(f"{place} has the lists of ShapeNet-55 but no folder shapenet_pc; unpack it there")
        return None
    lists, points = _lists(base), base / "shapenet_pc"
    labels = {synset: label for label, synset in enumerate(sorted(SYNSETS))}
    present, seen = names_in(points), set[str]()
    items: list[Item] = []
    for split in ("train", "test"):
        path = lists / f"{split}.txt"
        names = read_lines(path)
        for name in names:
            match = _ENTRY.fullmatch(name)
            if not match or match[1] not in labels:
                raise DataError(
                    f"{path} has the line {shown(name)}, not a <synset>-<model>.npy of the 55 synsets; {FRESH}"
                )
            read = partial(_read, os.path.join(points, name))
            items.append(Item(name[:-4], labels[match[1]], "train" if whole else split, read))
        refuse_repeated(path, names, seen)
        refuse_missing(path, names, (name for name in names if name not in present))
    names_of_classes = tuple(SYNSETS[synset] for synset in sorted(SYNSETS))
    return Source(NAME, items, names_of_classes, "y", SHAPENET_LICENCE, num_points=NUM_POINTS)


def _lists(base: Path) -> Path:
    """Return the folder of the lists, which may be inside or beside the folder of the data."""
    for place in (base / "ShapeNet-55", base, base.parent / "ShapeNet-55"):
        if all(os.path.isfile(place / f"{split}.txt") for split in ("train", "test")):
            return place
    raise DataError(
        f"{base} has shapenet_pc but not the lists train.txt and test.txt, which the download lacks: copy "
        f"data/ShapeNet55-34/ShapeNet-55 of the repository of Point-BERT (or PoinTr) to {base / 'ShapeNet-55'}"
    )


def _read(path: str) -> Sample:
    content = read_file(path, _LARGEST_FILE)
    try:
        points = parse_npy(content)
    except ValueError as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; {FRESH}") from error
    if points.shape != (NUM_POINTS, 3) or points.dtype.kind != "f":
        found = f"{shown(points.shape)} {points.dtype}"
        raise DataError(f"{path}: points are {found}; expected ({NUM_POINTS}, 3) float32; {FRESH}")
    return Sample(points)


DATASET = Dataset(
    name=NAME,
    load=load,
    source=source,
    title="ShapeNet-55: 52,470 shapes of 8,192 points in 55 categories (41,952 train, 10,518 test)",
    licence="non-commercial research and education, after registration",
    terms=SHAPENET_TERMS,
    manual=(
        "get the archive with a browser from https://drive.google.com/file/d/1jUB5yD7DP97-EqqU2A9mmr61JpNwZBVK "
        "and unpack it to datasets/shapenet55/ShapeNet55-34/shapenet_pc/*.npy; the lists are not in it: put "
        "train.txt and test.txt of data/ShapeNet55-34/ShapeNet-55 of https://github.com/lulutang0608/Point-BERT "
        "into datasets/shapenet55/ShapeNet55-34/ShapeNet-55"
    ),
)
