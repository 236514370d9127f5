"""Datasets by name: a new one is a file here with `load(split, root, *, ...)`, and a line in DATASETS."""

from collections.abc import Callable
from pathlib import Path

from pc_ewa.data import (
    fewshot,
    files,
    hdf5,
    modelnet10,
    modelnet40,
    scanobjectnn,
    shapenet55,
    shapenetpart,
    sweethome3d,
)
from pc_ewa.data.clouds import Clouds, MissingSplitError, UpAxis
from pc_ewa.data.hdf5 import read_hdf5, write_hdf5
from pc_ewa.validation import check_arguments, choose

__all__ = [
    "DATASETS",
    "load_dataset",
    "Clouds",
    "UpAxis",
    "read_hdf5",
    "write_hdf5",
    "MissingSplitError",
]

DATASETS: dict[str, Callable[..., Clouds]] = {
    "sweethome3d": sweethome3d.load,
    "modelnet40": modelnet40.load,
    "modelnet10": modelnet10.load,
    "modelnet_fewshot": fewshot.load,
    "scanobjectnn": scanobjectnn.load,
    "shapenet55": shapenet55.load,
    "shapenetpart": shapenetpart.load,
    "files": files.load,
    "hdf5": hdf5.load,
}


def load_dataset(name: str, split: str, root: str | Path = "datasets", **options: object) -> Clouds:
    """Load one split of a dataset.

    Args:
        name: a key of DATASETS.
        split: "train" or "test"; some datasets have "val" as well.
        root: the folder that holds one folder per dataset.
        **options: what this dataset takes beyond that, such as `path` for "hdf5".

    Raises:
        ConfigError: an unknown dataset or option; the nearest is named.
        DataError: data that is missing or damaged, or a split it does not have.
    """
    loader = choose("dataset", name, DATASETS)
    return loader(split, Path(root), **check_arguments(f"dataset {name}", loader, options, skip=["split", "root"]))
