"""ModelNet40: shapes of 40 classes (datasets/modelnet40/README.md).

"train" is 9,843 shapes in the text files, their caches and the meshes, but 9,840 in `modelnet40_ply_hdf5_2048`:
the licence line of a prepared file says which it came from. "test" is 2,468 in all.
"""

from pathlib import Path

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.modelnet import formats
from pc_ewa.data.prepared import load_prepared, open_source
from pc_ewa.data.source import Source

NAME = "modelnet40"


def load(split: str, root: Path, *, path: str | None = None) -> Clouds:
    """Load "train" or "test" from the prepared file, or from the published files in any format.

    Args:
        split: name of the split.
        root: the folder of all datasets; this one is looked for in its folder `modelnet40`.
        path: instead, the folder of the dataset or a prepared file.

    Raises:
        MissingSplitError: no such split.
        DataError: nothing there, or something damaged.
    """
    return load_prepared(NAME, split, root / NAME, f"{NAME}.h5", formats("40"), path)


def source(folder: Path) -> Source:
    """Find the published files in a folder, in any format.

    Raises:
        DataError: none there, or damaged ones.
    """
    return open_source(NAME, folder, formats("40"))
