"""Subsets of a dataset that do not depend on the seed of a run: few shapes per class, and cross-validation folds."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pc_ewa.data.clouds import Clouds
from pc_ewa.errors import DataError

# One seed for every draw of this module, so that runs with different seeds train and test on the same shapes.
_SEED = 0


def few_of_each(clouds: Clouds, train: int | None, val: int | None) -> tuple[Clouds, Clouds | None]:
    """Keep few shapes of each class. The draw is fixed, and a smaller number gives a subset of a larger one.

    Args:
        clouds: the training split.
        train: number of training shapes of each class. None keeps all that are not for validation.
        val: number of validation shapes of each class, disjoint from training. None makes no validation part.

    Returns:
        The training and the validation part, both in the order of the split. The second is None if `val` is.

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
    # Training shapes come from the front of the drawn order and validation shapes from its end: neither number
    # changes the choice of the other part.
    kept = [drawn[:train] if train else drawn[: len(drawn) - (val or 0)] for drawn in by_class.values()]
    held_out = [drawn[len(drawn) - val :] for drawn in by_class.values()] if val else None
    return clouds.select(_in_order(kept)), None if held_out is None else clouds.select(_in_order(held_out))


def folds_of(clouds: Clouds, folds: int, fold: int) -> tuple[Clouds, Clouds]:
    """Split shapes into stratified folds of equal size. One fold is the test part; the others are for training.

    Args:
        clouds: all shapes.
        folds: number of folds.
        fold: index of the test fold, from 0.

    Returns:
        The training and the test part.

    Raises:
        DataError: fewer shapes than folds, or a class without a training shape.
    """
    if len(clouds) < folds:
        raise DataError(f"{clouds.name} has {len(clouds)} shapes for data.cv_folds={folds}; lower it")
    # Round robin over all shapes in the order of classes, not within each class: otherwise the first folds would get
    # the remainders of every class.
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
    """Return the indices of the shapes of each class that is not empty, in random order."""
    labels = clouds.labels.cpu().numpy()
    # RandomState, not default_rng: NEP 19 freezes its stream for all versions of numpy.
    order = np.random.RandomState(_SEED).permutation(len(labels))
    return {int(label): order[labels[order] == label] for label in np.unique(labels)}


def _in_order(parts: list[npt.NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(parts)))
