"""The bundled tutorial set: 613 furniture shapes in 18 classes (datasets/sweethome3d/README.md)."""

from pathlib import Path

from pc_ewa.bundled import bundled
from pc_ewa.data.clouds import Clouds
from pc_ewa.data.hdf5 import read_hdf5

FILE = "sweethome3d/sweethome3d_1024.h5"


def load(split: str, root: Path) -> Clouds:
    """Load "train" (459 shapes) or "test" (154), 1024 points each."""
    path = root / FILE
    if not path.parent.is_dir():  # the one that comes with the package
        path = bundled("datasets") / FILE
    return read_hdf5(
        path, split, name="sweethome3d", remedy="it comes with pc-ewa: leave data.root out, or install again"
    )
