"""`ModelNet40/airplane/train/airplane_0001.off`: the meshes of Princeton, from which all other formats were made."""

from functools import partial
from pathlib import Path

import numpy as np

from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import read_shape
from pc_ewa.data.published.modelnet_common import CLASSES, SPLITS, Variant, files_in, new_source
from pc_ewa.data.source import Item, Sample, Source, check_sample
from pc_ewa.errors import DataError

MESH_POINTS = 8192  # drawn from each mesh


def meshes(variant: Variant, folder: Path) -> Source | None:
    """Find the folders of classes and their .off files. None means that there are no such folders."""
    classes = CLASSES[variant]
    home = next((h for h in (folder, folder / f"ModelNet{variant}") if (h / classes[0] / "train").is_dir()), None)
    # The meshes of ModelNet40 include those classes too, but they are not aligned, unlike those of ModelNet10.
    if home is None or (variant == "10" and (home / "airplane").exists()):
        return None
    items = []
    for label, kind in enumerate(classes):
        for split in SPLITS:
            place = home / kind / split
            names = sorted(name for name in files_in(place) if name.endswith(".off") and name[0] != ".")
            if not names:
                raise DataError(f"{place}: no .off files; unpack ModelNet{variant}.zip again")
            items += [Item(name[:-4], label, split, partial(_read_mesh, place / name)) for name in names]
    return new_source(variant, f"points drawn from ModelNet{variant}.zip", items, "z", MESH_POINTS)


def _read_mesh(path: Path) -> Sample:
    """Sample points of a mesh, the same every time. Centre and scale them, because the units of the meshes vary."""
    vertices, faces = read_shape(path)
    if faces is None:
        raise DataError(f"{path}: no faces to sample points from; get a fresh copy")
    # Seeded by the name of the file, so that points depend neither on the folder nor on the order of reading.
    random = np.random.RandomState(np.frombuffer(path.stem.encode("utf-8", "surrogateescape"), np.uint8))
    try:
        points = sample_surface(vertices, faces, MESH_POINTS, random)
    except ValueError as error:
        raise DataError(f"{path}: {error}; get a fresh copy") from error
    points -= points.mean(0)
    points /= np.linalg.norm(points, axis=1).max() or 1.0
    return check_sample(Sample(points.astype(np.float32)), str(path))
