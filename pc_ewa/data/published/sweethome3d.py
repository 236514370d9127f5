"""sweethome3d: the furniture shapes that are bundled with the package (datasets/sweethome3d/README.md)."""

from pathlib import Path

from pc_ewa.bundled import bundled
from pc_ewa.data.clouds import Clouds
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.hdf5 import read_hdf5

NAME = "sweethome3d"
FILE = f"{NAME}/sweethome3d_1024.h5"


def load(split: str, root: Path) -> Clouds:
    """Load "train" (459 shapes) or "test" (154), 1024 points each."""
    path = root / FILE
    # Outside of a clone, or with another root, take the copy in the package.
    if not path.parent.is_dir():
        path = bundled("datasets") / FILE
    return read_hdf5(path, split, name=NAME, remedy="it comes with pc-ewa; install it again")


DATASET = Dataset(
    name=NAME,
    load=load,
    title="sweethome3d: 613 furniture shapes in 18 classes, a tutorial set",
    licence="CC0 and CC BY, see datasets/sweethome3d/ATTRIBUTION.md",
    terms="Keep datasets/sweethome3d/ATTRIBUTION.md with the data.",
    manual="it comes with pc-ewa",
)
