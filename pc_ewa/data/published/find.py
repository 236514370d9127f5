"""Locate a named dataset: a prepared file in our layout, or the published files, which are read in place."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.hdf5 import read_hdf5
from pc_ewa.data.source import Source
from pc_ewa.errors import DataError

# A function that recognises its files in a folder and returns the source. None means that there are no such files.
Format = Callable[[Path], Source | None]


def open_source(name: str, folder: Path, formats: Sequence[Format]) -> Source:
    """Return the source of the first format that is found in a folder.

    Raises:
        DataError: no format is found, or the files of one are damaged.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder or a prepared file; {_remedy(name)}")
    for form in formats:
        source = form(folder)
        if source is not None:
            return source
    others = sorted(file.name for file in folder.glob("*.h5"))
    found = f"; if {others[0]} is a prepared file: data.path={folder / others[0]}" if others else ""
    raise DataError(f"{folder} holds no {name} in any published format{found}; {_remedy(name)}")


def load_prepared(
    name: str, split: str, folder: Path, file: str, formats: Sequence[Format], path: str | Path | None = None
) -> Clouds:
    """Load a split from the prepared file if it exists, else from the published files, which takes longer.

    Args:
        name: name of the dataset.
        split: name of the split.
        folder: folder of the dataset.
        file: name of the prepared file in it.
        formats: published formats, tried in order.
        path: a folder in one of the formats, or a file in our layout. None uses `folder`.

    Raises:
        MissingSplitError: no shapes in this split.
        DataError: no files, or damaged ones.
    """
    place = folder if path is None else Path(path).expanduser()
    # os.path.isdir returns False for invalid paths, such as one with a NUL, for which Path.is_dir may raise.
    prepared = place / file if path is None or os.path.isdir(place) else place
    if os.path.isfile(prepared):
        return read_hdf5(prepared, split, name=name)
    return open_source(name, place, formats).clouds(split)


def _remedy(name: str) -> str:
    return f"pc-ewa prepare {name} gets it, or prints how"
