"""The splits of a dataset: train, validation and test."""

from pathlib import Path
from typing import NamedTuple

import torch

from pc_ewa.config import Data
from pc_ewa.data import Clouds, MissingSplitError, load_dataset
from pc_ewa.data.clouds import join
from pc_ewa.data.portions import few_of_each, folds_of
from pc_ewa.errors import ConfigError, DataError


class Splits(NamedTuple):
    """The three splits of a dataset. `val` is None without validation. `val_is_cut`: it was cut from train."""

    train: Clouds
    val: Clouds | None
    test: Clouds
    val_is_cut: bool

    def named(self, split: str) -> Clouds:
        """Return a split by its name.

        Raises:
            ConfigError: no validation part, because `data.val_fraction` is 0.
        """
        clouds: Clouds | None = {"train": self.train, "val": self.val, "test": self.test}[split]
        if clouds is None:
            raise ConfigError("there is no validation part: data.val_fraction=0; measure on train or test")
        return clouds

    def to_fit(self, split: str) -> Clouds:
        """Return the training samples for a test on `split`. For "test" they include those cut off for validation."""
        return join(self.train, self.val) if split == "test" and self.val_is_cut and self.val else self.train

    def all(self) -> list[Clouds]:
        """Return the splits that exist."""
        return [clouds for clouds in (self.train, self.val, self.test) if clouds is not None]


def load_splits(data: Data, seed: int) -> Splits:
    """Load train, validation and test. For a dataset without "val", cut a stratified share of train.

    Raises:
        DataError: files that are missing or damaged, or fewer samples or points than in `data`.
        ConfigError: `val_per_class` of a dataset that has a validation split.
    """
    arguments = {"root": Path(data.root), **data.arguments}
    train = load_dataset(data.name, "train", **arguments)
    test = load_dataset(data.name, "test", **arguments)
    for clouds in (train, test):
        if clouds.num_points < data.num_points:
            raise DataError(
                f"{data.name} has clouds of {clouds.num_points} points; data.num_points={data.num_points} is above that"
            )
    if data.cv_folds is not None and data.cv_fold is not None:
        train, test = folds_of(join(train, test), data.cv_folds, data.cv_fold)
    try:
        own = load_dataset(data.name, "val", **arguments)
    except MissingSplitError:
        return _cut_validation(data, train, test, seed)
    if data.val_per_class:
        raise ConfigError(f"data.val_per_class={data.val_per_class}: {data.name} has a validation split; leave it out")
    return Splits(_few(train, data)[0], own, test, val_is_cut=False)


def _cut_validation(data: Data, train: Clouds, test: Clouds, seed: int) -> Splits:
    """Cut a validation split from the training samples, unless `data.val_fraction` is 0."""
    train, val = _few(train, data)
    if val is None and data.val_fraction:
        train, val = train.split_validation(data.val_fraction, seed)
    return Splits(train, val, test, val_is_cut=val is not None)


def _few(train: Clouds, data: Data) -> tuple[Clouds, Clouds | None]:
    if data.train_per_class is None and data.val_per_class is None:
        return train, None
    return few_of_each(train, data.train_per_class, data.val_per_class)


def to_device_if_it_fits(clouds: Clouds, device: torch.device) -> Clouds:
    """Move clouds to the GPU if they take less than a quarter of its free memory. Batches are then drawn there."""
    fits = device.type == "cuda" and clouds.nbytes < torch.cuda.mem_get_info(device)[0] / 4
    return clouds.to(device) if fits else clouds
