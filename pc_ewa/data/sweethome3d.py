"""The bundled tutorial set: 613 furniture shapes in 18 classes (datasets/sweethome3d/README.md)."""

from pathlib import Path

from pc_ewa.data.clouds import Clouds
from pc_ewa.data.hdf5 import read_hdf5

FILE = "sweethome3d/sweethome3d_1024.h5"


def load(split: str, root: Path) -> Clouds:
    """Load "train" (459 shapes) or "test" (154), 1024 points each."""
    remedy = "it comes with the repository: start there, or point data.root at its datasets folder"
    return read_hdf5(root / FILE, split, name="sweethome3d", remedy=remedy)
