"""Datasets by name: a new one is a file here with `load(split, root, *, ...)`, and a line in DATASETS."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

from pc_ewa.data import hdf5, sweethome3d
from pc_ewa.data.clouds import Clouds, MissingSplitError, UpAxis
from pc_ewa.data.hdf5 import read_hdf5, write_hdf5
from pc_ewa.errors import DataError

__all__ = [
    "DATASETS",
    "load_dataset",
    "has_split",
    "Clouds",
    "UpAxis",
    "read_hdf5",
    "write_hdf5",
    "MissingSplitError",
]

DATASETS: dict[str, Callable[..., Clouds]] = {
    "sweethome3d": sweethome3d.load,
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
        DataError: an unknown dataset, option or split, or data that is missing or damaged.
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise DataError(f"unknown dataset {name!r}{_nearest(name, DATASETS)}; there are: {known}")
    _check_options(name, options)
    return DATASETS[name](split, Path(root), **options)


def has_split(name: str, split: str, root: str | Path = "datasets", **options: object) -> bool:
    """Tell whether a dataset has shapes in this split; data that is missing or damaged raises DataError."""
    try:
        load_dataset(name, split, root, **options)
    except MissingSplitError:
        return False
    return True


def _check_options(name: str, options: dict[str, object]) -> None:
    """Compare with the loader's keyword-only arguments: its signature is the one list of options."""
    parameters = inspect.signature(DATASETS[name]).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    listed = f"it takes: {', '.join(known)}" if known else "it takes none"
    for option in options:
        if option not in known:
            raise DataError(f"dataset {name!r} has no option {option!r}{_nearest(option, known)}; {listed}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in options]
    if missing:
        raise DataError(f"dataset {name!r} needs the option {missing[0]!r}, and none was given; {listed}")


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a guess at what was meant, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
