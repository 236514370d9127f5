"""ModelNet few-shot: folds of a few training shapes each, drawn from ModelNet40 (datasets/modelnet_fewshot/README.md).

The setting is that of Sharma and Kaul, Self-Supervised Few-Shot Learning on Point Clouds, NeurIPS 2020, in the files of
Yu et al., Point-BERT, CVPR 2022: 5 or 10 classes ("way"), 10 or 20 training shapes of each ("shot"), 20 test shapes of
each, 10 folds. Training shapes come from the training split of ModelNet40 and test shapes from its test split, so that
no fold has a shape in both.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pc_ewa.data.clouds import Clouds, MissingSplitError
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.formats.pickles import read_pickle
from pc_ewa.data.published.find import load_prepared, open_source
from pc_ewa.data.published.modelnet import LICENCE, MODELNET40, TERMS
from pc_ewa.data.published.modelnet_common import CLASSES, SPLITS
from pc_ewa.data.published.modelnet_resampled import label_of, sample_of
from pc_ewa.data.source import Item, Source
from pc_ewa.errors import ConfigError, DataError

NAME = "modelnet_fewshot"
FOLDS = 10
TEST_SHAPES = 20  # of each class

Way = Literal[5, 10]
Shot = Literal[10, 20]


def load(
    split: str, root: Path, *, way: Way = 5, shot: Shot = 10, fold: int = 0, seed: int = 0, path: str | None = None
) -> Clouds:
    """Load "train" or "test" of one fold: the published fold if its file exists, else one drawn from ModelNet40.

    Args:
        split: name of the split.
        root: folder of all datasets, with `modelnet_fewshot` or else `modelnet40`.
        way: number of classes.
        shot: number of training shapes of each class.
        fold: index of the fold, 0 to 9.
        seed: seed of drawn folds; it has no effect on published ones.
        path: folder of the published files, or a prepared file. None uses `root`, and draws a fold without files.

    Raises:
        ConfigError: a value that is not allowed.
        MissingSplitError: no such split.
        DataError: neither published files nor ModelNet40, or damaged files.
    """
    _check(way, shot, fold, seed)
    # Only published folds are ever prepared. If any is here, a missing one is an error: a drawn fold in its place would
    # be another task.
    if path is not None or any(_settings(root / NAME)) or any((root / NAME).glob(f"{NAME}_*.h5")):
        published = [partial(_published, way, shot, fold)]
        return load_prepared(NAME, split, root / NAME, file_name(way=way, shot=shot, fold=fold), published, path)
    if split not in SPLITS:
        raise MissingSplitError(f"{NAME}: there is no split {split!r}; choose one of: {', '.join(SPLITS)}")
    try:
        clouds = MODELNET40.load(split, root)
    except DataError as error:
        raise DataError(f"{NAME}: no published folds in {root / NAME}, and to draw them from: {error}") from error
    return _draw(clouds, split, way, shot, fold, seed)


def source(folder: Path, *, way: Way = 5, shot: Shot = 10, fold: int = 0) -> Source:
    """Find the published file of one fold.

    Raises:
        ConfigError: a value that is not allowed.
        DataError: missing or damaged files.
    """
    _check(way, shot, fold, 0)
    return open_source(NAME, folder, [partial(_published, way, shot, fold)])


def generate(train: Clouds, test: Clouds, way: int, shot: int, fold: int, seed: int) -> tuple[Clouds, Clouds]:
    """Draw a fold from the two splits of a dataset. The result depends on neither machine nor order of shapes.

    Args:
        train: source of `shot` shapes of each class.
        test: source of 20 shapes of each class; it must not share a shape with `train`.
        way: number of classes.
        shot: number of training shapes of each class.
        fold: index of the fold, 0 to 9.
        seed: seed of the draw.

    Returns:
        The training and the test shapes, labelled 0 to way - 1, class by class.

    Raises:
        ConfigError: a value that is not allowed, such as more classes than the dataset has.
        DataError: splits with different classes, or a class with too few shapes.
    """
    _check(way, shot, fold, seed)
    if train.class_names != test.class_names:
        raise DataError(f"{NAME}: the classes of train and test differ; take both from one dataset")
    return _draw(train, "train", way, shot, fold, seed), _draw(test, "test", way, shot, fold, seed)


def _draw(clouds: Clouds, split: str, way: int, shot: int, fold: int, seed: int) -> Clouds:
    if way > clouds.num_classes:
        raise ConfigError(f"way={way}: {clouds.name} has only {clouds.num_classes} classes; choose fewer")
    # One stream for the classes and one for each split, so that either split can be drawn without the other.
    classes = np.random.RandomState([seed, way, shot, fold]).permutation(clouds.num_classes)[:way]
    random = np.random.RandomState([seed, way, shot, fold, 1 + SPLITS.index(split)])
    count = shot if split == "train" else TEST_SHAPES
    labels: NDArray[np.int64] = clouds.labels.cpu().numpy()
    rows = []
    for label in classes:
        found = np.flatnonzero(labels == label)
        if len(found) < count:
            kind = f"{clouds.class_names[label]} has {len(found)} {split} shapes"
            raise DataError(f"{NAME}: {kind} in {clouds.name}, {count} are needed; use the whole dataset")
        # Sorted by name, because the published formats have the same shapes in different order.
        if clouds.shape_names is not None:
            found = np.array(sorted(found.tolist(), key=clouds.shape_names.__getitem__))
        rows.append(found[random.permutation(len(found))[:count]])
    names = tuple(clouds.class_names[label] for label in classes)
    fold_labels = torch.arange(way, device=clouds.labels.device).repeat_interleave(count)
    chosen = clouds.select(torch.from_numpy(np.concatenate(rows)))
    return replace(chosen, labels=fold_labels, class_names=names, name=NAME)


def _check(way: int, shot: int, fold: int, seed: int) -> None:
    for name, value, low, high in [("way", way, 2, 40), ("shot", shot, 1, 1000), ("fold", fold, 0, FOLDS - 1)]:
        if not low <= value <= high:
            raise ConfigError(f"{name}={value}: should be from {low} to {high}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: should be from 0 to 2**32 - 1")


def file_name(*, way: int, shot: int, fold: int) -> str:
    """Return the name of the prepared file of a fold."""
    return f"{NAME}_{way}way_{shot}shot_{fold}.h5"


# --- ModelNetFewshot/5way_10shot/0.pkl: the folds of Point-BERT


def _settings(folder: Path) -> list[Path]:
    """Return the existing folders of settings, whose names have an underscore (5way_10shot) or none."""
    homes = (folder, folder / "ModelNetFewshot")
    names = [f"{way}way{sign}{shot}shot" for way in (5, 10) for shot in (10, 20) for sign in ("_", "")]
    return [home / name for home in homes for name in names if (home / name).is_dir()]


def _published(way: int, shot: int, fold: int, folder: Path) -> Source | None:
    settings = _settings(folder)
    if not settings:
        return None
    path = next((place for place in settings if place.name.replace("_", "") == f"{way}way{shot}shot"), None)
    if path is None:
        raise DataError(
            f"{settings[0].parent}: there is no folder {way}way_{shot}shot; get it, or choose another setting"
        )
    path = path / f"{fold}.pkl"
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        raise DataError(f"{path}: not a dict of a list train and a list test; get a fresh copy")
    classes: dict[int, int] = {}  # label in ModelNet40 of each label in the fold
    items: list[Item] = []
    for split in SPLITS:
        entries = [
            _item(entry, way, classes, split, f"{path}: {split} shape {i}") for i, entry in enumerate(content[split])
        ]
        counts = np.bincount([item.label for item in entries], minlength=way)
        count = shot if split == "train" else TEST_SHAPES
        if (counts != count).any():
            wrong = int(np.flatnonzero(counts != count)[0])
            raise DataError(f"{path}: class {wrong} has {counts[wrong]} {split} shapes, not {count}; get a fresh copy")
        items += entries
    if len(set(classes.values())) != way:
        raise DataError(f"{path}: two of its classes are the same of ModelNet40; get a fresh copy")
    names = tuple(CLASSES["40"][classes[label]] for label in range(way))
    licence = f"academic research use only; ModelNetFewshot {way} way {shot} shot, fold {fold}"
    return Source(NAME, items, names, "y", licence, SPLITS)


def _item(entry: Any, way: int, classes: dict[int, int], split: str, where: str) -> Item:
    """Check an entry (points, label in the fold, label in ModelNet40), and return its item."""
    if not isinstance(entry, tuple | list) or len(entry) != 3:
        raise DataError(f"{where} is not (points, label, original label); get a fresh copy")
    label, original = label_of(entry[1], way, where), label_of(entry[2], len(CLASSES["40"]), where)
    if classes.setdefault(label, original) != original:
        raise DataError(f"{where} has label {label}, which was another class before; get a fresh copy")
    number = where.rpartition(" ")[2]
    return Item(f"{split}_{int(number):03}", label, split, partial(sample_of, entry[0], where))


DATASET = Dataset(
    name=NAME,
    load=load,
    source=source,
    file_name=file_name,
    title="ModelNet few-shot: {5,10} ways x {10,20} shots x 10 folds, drawn from ModelNet40",
    licence=LICENCE,
    terms=TERMS,
    manual=(
        "folds are drawn from modelnet40: prepare that; or get the published folds, which the Point-BERT page links "
        "to, as datasets/modelnet_fewshot/ModelNetFewshot/5way_10shot/0.pkl ..."
    ),
    drawn_from=MODELNET40.name,
)
