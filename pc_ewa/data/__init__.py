"""Datasets by name. To add one, write a module with a `Dataset` record and add a line to DATASETS."""

from pathlib import Path

from pc_ewa.data import hdf5, own_files
from pc_ewa.data.clouds import Clouds, MissingSplitError, UpAxis
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.digest import describe_change, digest
from pc_ewa.data.hdf5 import read_hdf5, write_hdf5
from pc_ewa.data.published import (
    modelnet,
    modelnet_fewshot,
    scanobjectnn,
    shapenet55,
    shapenetpart,
    sweethome3d,
)
from pc_ewa.validation import check_arguments, choose

__all__ = [
    "DATASETS",
    "load_dataset",
    "Clouds",
    "Dataset",
    "UpAxis",
    "read_hdf5",
    "write_hdf5",
    "digest",
    "describe_change",
    "MissingSplitError",
]

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        modelnet.MODELNET40,
        modelnet.MODELNET10,
        scanobjectnn.DATASET,
        shapenet55.DATASET,
        shapenetpart.DATASET,
        modelnet_fewshot.DATASET,
        sweethome3d.DATASET,
        own_files.DATASET,
        hdf5.DATASET,
    )
}


def load_dataset(name: str, split: str, root: str | Path = "datasets", **options: object) -> Clouds:
    """Load one split of a dataset.

    Args:
        name: a key of DATASETS.
        split: "train" or "test"; some datasets also have "val".
        root: the folder that holds one folder per dataset.
        **options: options of this dataset, such as `path` for "hdf5".

    Raises:
        ConfigError: an unknown dataset or option; the message suggests the nearest name.
        DataError: missing or damaged files, or a split that the dataset does not have.

    Example:
        >>> test = pc_ewa.load_dataset("sweethome3d", "test")
        >>> len(test), test.num_points, test.num_classes
        (154, 1024, 18)
    """
    # The signature of the loader is the only list of options: it also gives the config's keys and their defaults.
    load = choose("dataset", name, DATASETS).load
    return load(split, Path(root), **check_arguments(f"dataset {name}", load, options, skip=["split", "root"]))
