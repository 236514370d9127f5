"""The record of a dataset: its loader, licence, terms of use and download locations.

To add a dataset, write a module with a `DATASET = Dataset(...)`, add it to DATASETS in `pc_ewa/data/__init__.py`, and
write a card, datasets/NAME/README.md. `load_dataset`, configs, `pc-ewa prepare` and its `--list` all read this record.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pc_ewa.data.clouds import Clouds, UpAxis
from pc_ewa.data.source import Source
from pc_ewa.errors import DataError
from pc_ewa.validation import check_arguments


class Archive(NamedTuple):
    """An archive file with the whole dataset, and its mirrors.

    Attributes:
        file: name of the archive file.
        urls: mirrors, tried in order.
        size: size in bytes. None if it is not published.
        digests: accepted digests such as "md5:0cc1..." or "sha256:9f86...", as publishers and other loaders give them.
            One match suffices, because mirrors may have packed the same files differently. At least one is required;
            a mirror of http requires a SHA-256.
    """

    file: str
    urls: tuple[str, ...]
    size: int | None = None
    digests: tuple[str, ...] = ()


class Published(NamedTuple):
    """The training clouds of published weights, whose files contain the weights alone.

    Attributes:
        class_names: names of the classes, in the order of the labels.
        num_points: number of points of each stored cloud, from which the input of the model is sampled.
        up_axis: the axis that points up.
    """

    class_names: tuple[str, ...]
    num_points: int
    up_axis: UpAxis = "y"


@dataclass(frozen=True)
class Dataset:
    """The record of a dataset.

    Attributes:
        name: name of the dataset in a config (`data.name`), and of its folder below the root of all datasets.
        load: `load(split, root, *, ...) -> Clouds`. Its keyword arguments are the options of the dataset.
        source: `source(folder, *, ...) -> Source`, opens the published files. None if there is nothing to convert: the
            dataset is bundled, or its files are the user's.
        file_name: function from the arguments of `source` to the name of the prepared file. None gives NAME.h5.
        title: one line about the dataset.
        licence: the licence in one line.
        terms: the conditions of the authors, with the address of their page or form.
        archives: archives, any of which suffices; the first is the default. Empty if no program may download it.
        manual: instructions to get and place the files by hand.
        drawn_from: name of the dataset that this one is drawn from, if it has no files.
        own_files: True for a format of the user's files, which listings of datasets omit.
        parts: for part segmentation, the published part labels of each class.
        published: the training clouds of weights that were published for this dataset. None if there are no such
            weights, or if their clouds vary.

    Example:
        >>> modelnet40 = pc_ewa.data.DATASETS["modelnet40"]
        >>> modelnet40.published.num_points
        8192
    """

    name: str
    load: Callable[..., Clouds]
    source: Callable[..., Source] | None = None
    file_name: Callable[..., str] | None = None
    title: str = ""
    licence: str = ""
    terms: str = ""
    archives: tuple[Archive, ...] = ()
    manual: str = ""
    drawn_from: str | None = None
    own_files: bool = False
    parts: Mapping[str, range] = field(default_factory=dict)
    published: Published | None = None

    def __post_init__(self) -> None:
        """Refuse an archive without a digest, because `unpack` trusts an archive that `download` has checked."""
        for archive in self.archives:
            if not archive.digests:
                raise ValueError(f"{self.name}: {archive.file} has no digest to check it by")

    def source_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check the options of `source` and fill in its defaults.

        Raises:
            ConfigError: unknown or wrong options, with the nearest.
            DataError: as `open`.
        """
        return check_arguments(f"dataset {self.name}", self._source(), options, skip=["folder"])

    def open(self, folder: Path, **arguments: Any) -> Source:
        """Open the published files in a folder.

        Raises:
            DataError: nothing to convert, files that are missing or damaged.
        """
        return self._source()(folder, **arguments)

    def prepared(self, folder: Path, **arguments: Any) -> Path:
        """Return the path of the prepared file in the dataset's folder, where `load` finds it."""
        return folder / (f"{self.name}.h5" if self.file_name is None else self.file_name(**arguments))

    def has_files(self, folder: Path) -> bool:
        """Return True if a folder contains more than a card, prepared files, archives and unfinished downloads."""
        ours = {archive.file + suffix for archive in self.archives for suffix in ("", ".part")}
        return folder.is_dir() and any(
            path.name not in {"README.md", *ours} and path.name[0] != "." and path.suffix != ".h5"
            for path in folder.iterdir()
        )

    def _source(self) -> Callable[..., Source]:
        if self.source is None:
            raise DataError(f"there is nothing to prepare: {self.manual}")
        return self.source
