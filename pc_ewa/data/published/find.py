"""Find a named dataset: a prepared file in our layout, or the published files, read in place."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.hdf5 import read_hdf5
from pc_ewa.data.source import Source
from pc_ewa.errors import DataError

# Recognises its files in a folder and returns the source; None where they are not.
Format = Callable[[Path], Source | None]


def open_source(name: str, folder: Path, formats: Sequence[Format]) -> Source:
    """Return the first format found in a folder.

    Raises:
        DataError: none is there, or one is there but damaged.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder; {_remedy(name)}")
    for form in formats:
        source = form(folder)
        if source is not None:
            return source
    raise DataError(f"{folder} holds no {name} in any published format; {_remedy(name)}")


def load_prepared(
    name: str, split: str, folder: Path, file: str, formats: Sequence[Format], path: str | Path | None = None
) -> Clouds:
    """Load a split: from the prepared file if it is there, else from the published files, which takes longer.

    Args:
        name: name of the dataset.
        split: name of the split.
        folder: where the dataset lives.
        file: name of the prepared file in it.
        formats: the published ones.
        path: instead of `folder`, a folder in one of the formats, or a file in our layout.

    Raises:
        MissingSplitError: no shapes in this split.
        DataError: nothing there, or something damaged.
    """
    place = folder if path is None else Path(path).expanduser()
    # os.path answers also for paths that the system cannot have.
    prepared = place / file if path is None or os.path.isdir(place) else place
    if os.path.isfile(prepared):
        return read_hdf5(prepared, split, name=name)
    return open_source(name, place, formats).clouds(split)


def _remedy(name: str) -> str:
    return f"pc-ewa prepare {name} gets it, or says how"
