"""Portions of a dataset that do not depend on a run's seed: few shapes of each class, and the folds of a test."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pc_ewa.data.clouds import Clouds
from pc_ewa.errors import DataError

_SEED = 0  # of every draw here: the same shapes on every machine and for every run


def few_of_each(clouds: Clouds, train: int | None, val: int | None) -> tuple[Clouds, Clouds | None]:
    """Keep few shapes of each class, drawn once and for all: fewer are always some of more.

    Args:
        clouds: the training split.
        train: shapes of each class to train on; None is all that are left.
        val: shapes of each class to validate on, none of those; None is no such part.

    Returns:
        The training and the validation part, both in the order of the split.

    Raises:
        DataError: a class with fewer shapes.
    """
    needed = (train or 1) + (val or 0)
    by_class = _drawn_by_class(clouds)
    for label, drawn in by_class.items():
        if len(drawn) < needed:
            asked = f"{train or 1} to train on" + (f" and {val} to validate on" if val else "")
            raise DataError(
                f"{clouds.name} has {len(drawn)} shapes of {clouds.class_names[label]}, not {asked}; lower "
                "data.train_per_class or data.val_per_class"
            )
    kept = [drawn[:train] if train else drawn[: len(drawn) - (val or 0)] for drawn in by_class.values()]
    held_out = [drawn[len(drawn) - val :] for drawn in by_class.values()] if val else None
    return clouds.select(_in_order(kept)), None if held_out is None else clouds.select(_in_order(held_out))


def folds_of(clouds: Clouds, folds: int, fold: int) -> tuple[Clouds, Clouds]:
    """Deal shapes into folds of equal size with the same share of each class; one is the test, the others train.

    Args:
        clouds: all shapes.
        folds: how many.
        fold: which of them is the test, from 0.

    Returns:
        The training and the test part.

    Raises:
        DataError: fewer shapes than folds, or none of some class left to train on.
    """
    if len(clouds) < folds:
        raise DataError(f"{clouds.name} has {len(clouds)} shapes for data.cv_folds={folds}; lower it")
    # Dealt one after the other, class by class: no fold gets the remainders of all classes.
    dealt = np.concatenate([*_drawn_by_class(clouds).values()])
    test = np.zeros(len(clouds), dtype=bool)
    test[dealt[fold::folds]] = True
    index = torch.from_numpy(test)
    train, held_out = clouds.select((~index).nonzero().flatten()), clouds.select(index.nonzero().flatten())
    missing = set(held_out.labels.tolist()) - set(train.labels.tolist())
    if missing:
        name = clouds.class_names[min(missing)]
        raise DataError(f"{clouds.name} has one shape of {name}, which data.cv_folds={folds} leaves none to train on")
    return train, held_out


def _drawn_by_class(clouds: Clouds) -> dict[int, npt.NDArray[np.int64]]:
    """Return the positions of the shapes of each class that has any, in a drawn order."""
    labels = clouds.labels.cpu().numpy()
    # RandomState, not default_rng: its stream is frozen for all numpy versions.
    order = np.random.RandomState(_SEED).permutation(len(labels))
    return {int(label): order[labels[order] == label] for label in np.unique(labels)}


def _in_order(parts: list[npt.NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(parts)))
