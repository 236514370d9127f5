"""ModelNet40 and ModelNet10 in every published format. The cards in datasets/ compare the formats.

Wu et al., 3D ShapeNets: A Deep Representation for Volumetric Shapes, CVPR 2015. The Princeton meshes are the original;
the other formats are points sampled from them. In every format, labels are positions in the sorted list of classes.
"""

from functools import partial
from pathlib import Path

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.dataset import Archive, Dataset, Published
from pc_ewa.data.published.find import Format, load_prepared, open_source
from pc_ewa.data.published.modelnet_common import CLASSES, Variant
from pc_ewa.data.published.modelnet_hdf5 import shards
from pc_ewa.data.published.modelnet_meshes import meshes
from pc_ewa.data.published.modelnet_resampled import caches, resampled
from pc_ewa.data.source import Source

HUGGING_FACE = "https://huggingface.co/datasets"
LICENCE = "academic research only; the models belong to their authors"
TERMS = (
    "The CAD models were collected from the internet, and their authors hold the copyright; ModelNet is provided for "
    "academic research only. Princeton's page has the terms and the paper to cite: https://modelnet.cs.princeton.edu"
)


def _dataset(variant: Variant, title: str, archives: tuple[Archive, ...], manual: str) -> Dataset:
    """Return the record of one variant. The variants differ in classes and archives, not in formats."""
    name = f"modelnet{variant}"

    def load(split: str, root: Path, *, path: str | None = None) -> Clouds:
        """Load "train" or "test" from the prepared file, or from the published files in any format.

        "train" of ModelNet40 has 9,843 shapes in the text files, their caches and the meshes, but 9,840 in
        `modelnet40_ply_hdf5_2048`. The licence of a prepared file names its format. "test" has 2,468 shapes in all
        formats. ModelNet10 has 3,991 and 908 shapes. Its text files are part of those of ModelNet40, whose folder can
        be given as `path`.

        Args:
            split: name of the split.
            root: folder of all datasets; the files are expected in its subfolder with the name of this dataset.
            path: folder of this dataset, or a prepared file. None uses `root`.

        Raises:
            MissingSplitError: no such split.
            DataError: missing or damaged files.
        """
        return load_prepared(name, split, root / name, f"{name}.h5", formats(variant), path)

    def source(folder: Path) -> Source:
        """Find the published files in a folder, in any format; DataError if they are missing or damaged."""
        return open_source(name, folder, formats(variant))

    return Dataset(
        name=name,
        load=load,
        source=source,
        title=title,
        licence=LICENCE,
        terms=TERMS,
        archives=archives,
        manual=manual,
        published=Published(CLASSES[variant], num_points=8192),  # the FPS caches of Point-BERT
    )


def formats(variant: Variant) -> list[Format]:
    """Return the formats in order of preference: those of published experiments first."""
    found: list[Format] = [partial(caches, variant), partial(resampled, variant)]
    if variant == "40":
        found.append(shards)
    return [*found, partial(meshes, variant)]


MODELNET40 = _dataset(
    "40",
    title="ModelNet40: 12,311 CAD shapes in 40 classes (9,843 train, 2,468 test; 9,840 train in the h5 files)",
    archives=(
        Archive(
            "modelnet40_normal_resampled.tar.gz",
            (
                f"{HUGGING_FACE}/Pointcept/modelnet40_normal_resampled-compressed/resolve/main/"
                "modelnet40_normal_resampled.tar.gz",
            ),
            digests=("md5:46ed374f8ef5f7504ec4870298772ac2",),
        ),
        Archive(
            "modelnet40_ply_hdf5_2048.zip",
            (
                f"{HUGGING_FACE}/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip",
                "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
            ),
            # The mirror and Stanford packed the same files differently. The first MD5 is of the mirror, the second MD5
            # and the SHA-256 are of Stanford.
            digests=(
                "md5:5ae9e37d1527ff1500e41a7e9e2d50e4",
                "md5:c9ab8e6dfb16f67afdab25e155c79e59",
                "sha256:07670e237db72ece0f723b9abb571534c9ad655a6456b389646587dc72bb8bae",  # TensorFlow Graphics
            ),
        ),
        Archive(
            "ModelNet40.zip",
            (
                "https://modelnet.cs.princeton.edu/ModelNet40.zip",
                "http://modelnet.cs.princeton.edu/ModelNet40.zip",
            ),
            size=2_039_180_837,
            digests=(
                "md5:79bcee68fdf02f581938ba15f4cdca51",
                "sha256:42dc3e656932e387f554e25a4eb2cc0e1a1bd3ab54606e2a9eae444c60e536ac",  # TensorFlow Datasets
            ),
        ),
    ),
    manual=(
        "any of these in datasets/modelnet40: modelnet40_normal_resampled/ (10,000 points each; Stanford's address "
        "has been dead since 2023, Kaggle has chenxaoyu/modelnet-normal-resampled), the caches "
        "modelnet40_{train,test}_8192pts_fps.dat that the Point-BERT page links to, modelnet40_ply_hdf5_2048/ "
        "(2,048 points each), or the meshes ModelNet40/"
    ),
)

MODELNET10 = _dataset(
    "10",
    title="ModelNet10: CAD meshes in 10 classes, all of them aligned",
    archives=(
        Archive(
            "ModelNet10.zip",
            (
                "https://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
                "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
            ),
            size=473_402_300,
            digests=(
                "md5:18f4c73879802c35aa6178f8e773a99e",
                "sha256:9d8679435fc07d1d26f13009878db164a7aa8ea5e7ea3c8880e42794b7307d51",  # Kaolin
            ),
        ),
    ),
    manual="the meshes in datasets/modelnet10/ModelNet10/<class>/{train,test}/*.off",
)
