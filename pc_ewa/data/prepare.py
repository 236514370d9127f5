"""The work of `pc-ewa prepare`: find, download and unpack published datasets, and list the datasets of this machine.

Parsing of arguments, printing and prompts are in the command.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pc_ewa.data import DATASETS
from pc_ewa.data.dataset import Archive, Dataset
from pc_ewa.data.hdf5 import open_layout
from pc_ewa.data.published.download import download
from pc_ewa.data.published.unpack import unpack
from pc_ewa.data.source import Source
from pc_ewa.errors import DataError, Error
from pc_ewa.validation import choose


def listed() -> dict[str, Dataset]:
    """Return the datasets that `pc-ewa prepare` lists: all except the formats of the user's files."""
    return {name: dataset for name, dataset in DATASETS.items() if not dataset.own_files}


def get_source(
    dataset: Dataset,
    folder: Path,
    arguments: Mapping[str, Any],
    consent: Callable[[Archive], None],
    *,
    archive: str | None = None,
    say: Callable[[str], None] = print,
) -> Source:
    """Open the published files of a dataset. If they are missing, download and unpack them first.

    Args:
        dataset: record of the dataset.
        folder: folder of the files, and target of the download.
        arguments: checked arguments of `dataset.source`.
        consent: called before a download to get the user's consent to the terms; raises without it.
        archive: name of the archive to download. None takes the archive that is in the folder, or else the first.
        say: called with each line for the user.

    Raises:
        ConfigError: an archive that the dataset does not have.
        DataError: a dataset that no program may download, no consent, no mirror that delivers, or damaged files.
    """
    try:
        return dataset.open(folder, **arguments)
    except DataError as error:
        if dataset.has_files(folder):
            say(f"the files in {folder} cannot be used: {error}")
        if not dataset.archives:
            raise DataError(f"no program can download {dataset.name}: {dataset.manual}") from error
    known = {archive.file: archive for archive in dataset.archives}
    present = [file for file in known if (folder / file).exists()]
    chosen = choose("archive", archive or (present or list(known))[0], known)
    file = folder / chosen.file
    if not file.exists():
        consent(chosen)
    try:
        # Also for an archive that is there already, because this checks its digest, which `unpack` relies on.
        download(chosen.urls, file, digests=chosen.digests)
    except DataError as error:
        raise DataError(f"{error}; or by hand: {dataset.manual}") from error
    made = unpack(file, folder)
    say(f"unpacked to {made}; once converted, {file.name} and this folder can be removed")
    return dataset.open(folder, **arguments)


def table_of_datasets(root: Path) -> list[list[str]]:
    """Return the rows of `pc-ewa prepare --list`, beginning with the header."""
    rows = [["dataset", "download", "licence", f"in {root}"]]
    for name, dataset in listed().items():
        size = "by hand" if dataset.source else "bundled"
        if dataset.archives:
            size = size_in_words(dataset.archives[0].size)
        rows.append([name, size, dataset.licence, state(dataset, root / name)])
    return rows


def state(dataset: Dataset, folder: Path) -> str:
    """Describe the state of a dataset in its folder, such as "absent" or "ready: modelnet40.h5"."""
    prepared = sorted(path.name for path in folder.glob(f"{dataset.name}*.h5"))
    if prepared:
        return f"ready: {', '.join(prepared)}"
    if dataset.source is None:
        return "ready: it comes with pc-ewa"
    if not dataset.has_files(folder):
        return "absent" if dataset.drawn_from is None else f"drawn from {dataset.drawn_from}"
    try:
        source = dataset.open(folder, **dataset.source_arguments({}))
    except Error as error:
        return f"not usable: {error}"
    return f"published files, {len(source.items):,} shapes: prepare them to load faster"


def describe(path: Path) -> tuple[str, list[list[str]]]:
    """Return a line about a prepared file, and a table of its shapes by class and split, beginning with the header."""
    with open_layout(path) as layout:
        shape = layout.arrays["data"].shape
    splits = list(layout.used_splits())
    rows = [["class", *splits]]
    for label, name in enumerate([*layout.class_names, "all"]):
        mine = layout.labels == label if label < len(layout.class_names) else np.ones(len(layout.labels), bool)
        counts = [int((mine & (layout.splits == layout.split_names.index(split))).sum()) for split in splits]
        rows.append([name, *(f"{count:,}" for count in counts)])
    return f"{path}: {shape[0]:,} shapes of {shape[1]:,} points, {layout.up_axis} up", rows


def size_in_words(number: int | None) -> str:
    """Return a number of bytes in GB or MB."""
    return "size unknown" if number is None else f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
