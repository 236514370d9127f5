"""ModelNet10: shapes of 10 classes (datasets/modelnet10/README.md).

3,991 shapes to train and 908 to test. The text files and their lists come with those of ModelNet40: give their
folder as `path`.
"""

from pathlib import Path

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.modelnet import formats
from pc_ewa.data.prepared import load_prepared, open_source
from pc_ewa.data.source import Source

NAME = "modelnet10"


def load(split: str, root: Path, *, path: str | None = None) -> Clouds:
    """Load "train" or "test" from the prepared file, or from the published files in any format.

    Args:
        split: name of the split.
        root: the folder of all datasets; this one is looked for in its folder `modelnet10`.
        path: instead, the folder of the dataset or a prepared file.

    Raises:
        MissingSplitError: no such split.
        DataError: nothing there, or something damaged.
    """
    return load_prepared(NAME, split, root / NAME, f"{NAME}.h5", formats("10"), path)


def source(folder: Path) -> Source:
    """Find the published files in a folder, in any format.

    Raises:
        DataError: none there, or damaged ones.
    """
    return open_source(NAME, folder, formats("10"))
