"""What tools/prepare_data.py knows of each dataset: whose it is, on what terms, where it is, and what converts it.

Hashes are those that publishers and other loaders give; a size or hash that nobody gives is None or left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pc_ewa.data.source import Source
from pc_ewa.errors import DataError
from pc_ewa.validation import check_arguments

_HUGGING_FACE = "https://huggingface.co/datasets"


class Archive(NamedTuple):
    """A file with the whole dataset: its mirrors, and what it is checked by; one digest that fits suffices."""

    file: str
    urls: tuple[str, ...]
    size: int | None = None
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One dataset.

    Attributes:
        title: what it is, in one line.
        licence: in one line.
        terms: what its authors ask for, and where that is written or a form is.
        archives: any of them suffices, the first is the default; none where no program may download it.
        manual: how to get and place the files by hand.
        source: "module:function" that opens the published files; None for a dataset that comes prepared.
        prepared: name of the prepared file, from the options; a function `file_name` in the module goes before it.
        drawn_from: a dataset that this one is drawn from where it has no files of its own.
    """

    title: str
    licence: str
    terms: str
    archives: tuple[Archive, ...]
    manual: str
    source: str | None
    prepared: str = "{name}.h5"
    drawn_from: str | None = None

    def opener(self) -> Callable[..., Source]:
        """Import and return the function that opens the published files.

        Raises:
            DataError: a dataset that comes prepared, or a module that is not installed.
        """
        if self.source is None:
            raise DataError(f"there is nothing to prepare: {self.manual}")
        module, function = self.source.split(":")
        try:
            return getattr(import_module(module), function)
        except ModuleNotFoundError as error:
            raise DataError(f"{self.title}: cannot be read here, {error}; install the whole of pc-ewa") from error

    def arguments(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Check the options of the source and fill in its defaults.

        Raises:
            ConfigError: unknown or wrong ones, with the nearest.
        """
        return check_arguments(f"dataset {name}", self.opener(), options, skip=["folder"])

    def file_name(self, name: str, arguments: dict[str, Any]) -> str:
        """Return the name of the prepared file, by which `load_dataset` finds it."""
        naming = getattr(import_module(self.opener().__module__), "file_name", None)
        return naming(**arguments) if naming else self.prepared.format(name=name, **arguments)

    def has_files(self, folder: Path) -> bool:
        """Whether there is more in the dataset's folder than a card, archives, and what a stopped run left."""
        ours = {archive.file + suffix for archive in self.archives for suffix in ("", ".part", ".part.json")}
        return folder.is_dir() and any(
            path.name not in {"README.md", *ours} and path.name[0] != "." and path.suffix != ".h5"
            for path in folder.iterdir()
        )


_MODELNET_TERMS = (
    "The CAD models were collected from the internet, and their authors hold the copyright; ModelNet is provided for "
    "academic research only. Princeton's page has the terms and the paper to cite: https://modelnet.cs.princeton.edu"
)

_SHAPENET_TERMS = (
    "ShapeNet is for non-commercial research and education. Register with ShapeNet and accept its terms before you use "
    "any file made from it: https://shapenet.org (Register, and Terms of Use)."
)

CATALOG: dict[str, Entry] = {
    "modelnet40": Entry(
        title="ModelNet40: 12,311 CAD shapes in 40 classes (9,843 train, 2,468 test; 9,840 train in the h5 files)",
        licence="academic research only; the models belong to their authors",
        terms=_MODELNET_TERMS,
        archives=(
            Archive(
                "modelnet40_normal_resampled.tar.gz",
                (
                    f"{_HUGGING_FACE}/Pointcept/modelnet40_normal_resampled-compressed/resolve/main/"
                    "modelnet40_normal_resampled.tar.gz",
                ),
                digests=("md5:46ed374f8ef5f7504ec4870298772ac2",),
            ),
            Archive(
                "modelnet40_ply_hdf5_2048.zip",
                (
                    f"{_HUGGING_FACE}/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip",
                    "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
                ),
                # of the mirror, and of Stanford's own zip: two packings of the same files
                digests=("md5:5ae9e37d1527ff1500e41a7e9e2d50e4", "md5:c9ab8e6dfb16f67afdab25e155c79e59"),
            ),
            Archive(
                "ModelNet40.zip",
                ("http://modelnet.cs.princeton.edu/ModelNet40.zip",),
                digests=("md5:79bcee68fdf02f581938ba15f4cdca51",),
            ),
        ),
        manual=(
            "any of these in datasets/modelnet40: modelnet40_normal_resampled/ (10,000 points each; Stanford's address "
            "has been dead since 2023, Kaggle has chenxaoyu/modelnet-normal-resampled), the caches "
            "modelnet40_{train,test}_8192pts_fps.dat that the Point-BERT page links to, modelnet40_ply_hdf5_2048/ "
            "(2,048 points each), or the meshes ModelNet40/"
        ),
        source="pc_ewa.data.modelnet40:source",
    ),
    "modelnet10": Entry(
        title="ModelNet10: CAD meshes in 10 classes, all of them aligned",
        licence="academic research only; the models belong to their authors",
        terms=_MODELNET_TERMS,
        archives=(
            Archive(
                "ModelNet10.zip",
                (
                    "https://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
                    "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
                ),
                size=473_402_300,
                digests=("md5:18f4c73879802c35aa6178f8e773a99e",),
            ),
        ),
        manual="the meshes in datasets/modelnet10/ModelNet10/<class>/{train,test}/*.off",
        source="pc_ewa.data.modelnet10:source",
    ),
    "scanobjectnn": Entry(
        title="ScanObjectNN: scans of real objects in 15 classes (variants pb_t50_rs, obj_bg, obj_only)",
        licence="research use, on the terms of its form",
        terms=(
            "The authors ask everybody to fill in their form before the download: https://forms.gle/ZZRnnmaUdwfRucoy7 "
            "(project page: https://hkust-vgd.github.io/scanobjectnn). Do that first: the files here come from the "
            "authors' server, which does not answer at times, or from a copy that others keep."
        ),
        archives=(
            Archive(
                "h5_files.zip",
                (
                    "https://hkust-vgd.ust.hk/scanobjectnn/h5_files.zip",
                    "http://hkust-vgd.ust.hk/scanobjectnn/h5_files.zip",
                    "https://download.cs.stanford.edu/orion/scanobjectnn/h5_files.zip",
                ),
                size=13_099_259_542,
                digests=("md5:36876af479f9ad39abad5ebcd89038dd",),
            ),
        ),
        manual=(
            "main_split/ and main_split_nobg/ of h5_files.zip in datasets/scanobjectnn/h5_files; single files are "
            "copied at https://huggingface.co/datasets/cminst/ScanObjectNN"
        ),
        source="pc_ewa.data.scanobjectnn:source",
    ),
    "shapenet55": Entry(
        title="ShapeNet-55: 52,470 shapes of 8,192 points in 55 categories (41,952 train, 10,518 test)",
        licence="non-commercial research and education, after registration",
        terms=_SHAPENET_TERMS,
        archives=(),
        manual=(
            "get the archive with a browser from https://drive.google.com/file/d/1jUB5yD7DP97-EqqU2A9mmr61JpNwZBVK "
            "and unpack it to datasets/shapenet55/ShapeNet55-34/shapenet_pc/*.npy; the lists are not in it: put "
            "train.txt and test.txt of data/ShapeNet55-34/ShapeNet-55 of https://github.com/lulutang0608/Point-BERT "
            "into datasets/shapenet55/ShapeNet55-34/ShapeNet-55"
        ),
        source="pc_ewa.data.shapenet55:source",
    ),
    "shapenetpart": Entry(
        title="ShapeNetPart: 16,881 shapes in 16 categories, each point labelled with one of 50 parts",
        licence="non-commercial research and education, after registration",
        terms=_SHAPENET_TERMS,
        archives=(),
        manual=(
            "get shapenetcore_partanno_segmentation_benchmark_v0_normal.zip with a browser from "
            "https://drive.google.com/file/d/1W3SEE-dY1sxvlECcOwWSDYemwHEUbJIS (Stanford's address is dead) and unpack "
            "it to datasets/shapenetpart/shapenetcore_partanno_segmentation_benchmark_v0_normal"
        ),
        source="pc_ewa.data.shapenetpart:source",
    ),
    "modelnet_fewshot": Entry(
        title="ModelNet few-shot: {5,10} ways x {10,20} shots x 10 folds, drawn from ModelNet40",
        licence="academic research only; the models belong to their authors",
        terms=_MODELNET_TERMS,
        archives=(),
        manual=(
            "it needs no file of its own, folds are drawn from modelnet40: prepare that; or get the published ones, "
            "which the Point-BERT page links to, as datasets/modelnet_fewshot/ModelNetFewshot/5way_10shot/0.pkl ..."
        ),
        source="pc_ewa.data.fewshot:source",
        prepared="{name}_{way}way_{shot}shot_{fold}.h5",
        drawn_from="modelnet40",
    ),
    "sweethome3d": Entry(
        title="sweethome3d: 613 furniture shapes in 18 classes, a tutorial set",
        licence="CC0 and CC BY, see datasets/sweethome3d/ATTRIBUTION.md",
        terms="Keep datasets/sweethome3d/ATTRIBUTION.md with the data.",
        archives=(),
        manual="it comes with the repository, in datasets/sweethome3d",
        source=None,
    ),
}
