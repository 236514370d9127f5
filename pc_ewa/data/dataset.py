"""The record of one dataset: how it is loaded, whose it is, on what terms, and where its files come from.

Adding a dataset is one module with a `DATASET = Dataset(...)`, one line in `pc_ewa/data/__init__.py`, and a card in
datasets/NAME/README.md. `load_dataset`, configs, `pc-ewa prepare` and its `--list` all read this record.
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
    """A file with the whole dataset, and its mirrors.

    Attributes:
        file: its name.
        urls: mirrors, tried in order.
        size: in bytes; None where nobody publishes it.
        digests: such as "md5:0cc1..." or "sha256:9f86...", as publishers and other loaders give them; one that fits
            suffices, because mirrors may have packed the same files differently. At least one is needed, and a SHA-256
            for a mirror of http.
    """

    file: str
    urls: tuple[str, ...]
    size: int | None = None
    digests: tuple[str, ...] = ()


class Published(NamedTuple):
    """The clouds that the weights of others were trained on: their files hold weights alone.

    Attributes:
        class_names: in the order of the labels.
        num_points: of each stored cloud, from which those of the model are taken.
        up_axis: the axis that points up.
    """

    class_names: tuple[str, ...]
    num_points: int
    up_axis: UpAxis = "y"


@dataclass(frozen=True)
class Dataset:
    """Everything there is to know of a dataset.

    Attributes:
        name: as in a config's `data.name`, and of its folder below the root of all datasets.
        load: `load(split, root, *, ...) -> Clouds`; its keyword arguments are the options of the dataset.
        source: `source(folder, *, ...) -> Source`, opens the published files. None where there is nothing to convert:
            a dataset that is bundled, or files of the user's own.
        file_name: the name of the prepared file, from the arguments of `source`. None: NAME.h5 for all of them.
        title: in one line.
        licence: in one line.
        terms: what its authors ask for, and where that is written or a form is.
        archives: any of them suffices, the first is the default; none where no program may download it.
        manual: how to get and place the files by hand.
        drawn_from: the dataset that this one is drawn from where it has no files of its own.
        own_files: True for a format of the user's own files, which no listing has.
        parts: for part segmentation, the labels of the parts of each class, where they are published.
        published: what models that were published on it know; None where there are none, or where it varies.
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
        """Refuse an archive without a digest: `unpack` relies on its having been checked."""
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
        """Return True if a folder has more than a card, prepared files, archives and unfinished downloads."""
        ours = {archive.file + suffix for archive in self.archives for suffix in ("", ".part")}
        return folder.is_dir() and any(
            path.name not in {"README.md", *ours} and path.name[0] != "." and path.suffix != ".h5"
            for path in folder.iterdir()
        )

    def _source(self) -> Callable[..., Source]:
        if self.source is None:
            raise DataError(f"there is nothing to prepare: {self.manual}")
        return self.source
