"""ModelNet in every published format, written as the published files look."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from pc_ewa.data.published.modelnet_common import CLASSES
from pc_ewa.data.source import Source

TEN = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]
POINTS = np.random.RandomState(0).uniform(-0.6, 0.6, (80, 7, 6)).round(6).astype(np.float32)
SPLITS = ("train", "test")
Shape = tuple[str, int, str, np.ndarray]  # name, label, split, coordinates


def shapes(classes: tuple[str, ...]) -> list[Shape]:
    """Two of each class: number 1 to train, number 2 to test."""
    rows = []
    for split in SPLITS:
        for label, kind in enumerate(classes):
            number = SPLITS.index(split)
            rows.append((f"{kind}_{number + 1:04}", label, split, POINTS[2 * label + number]))
    return rows


def write_lists(home: Path, classes: tuple[str, ...], prefix: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{prefix}_shape_names.txt").write_text("".join(f"{kind}\n" for kind in classes))
    for split in SPLITS:
        names = [name for name, _, where, _ in shapes(classes) if where == split]
        (home / f"{prefix}_{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_resampled(folder: Path, number: str = "40") -> Path:
    home = folder / "modelnet40_normal_resampled"
    classes = CLASSES[number]
    write_lists(home, classes, f"modelnet{number}")
    for name, label, _, points in shapes(classes):
        (home / classes[label]).mkdir(exist_ok=True)
        lines = [",".join(f"{value:.6f}" for value in row) + "\n" for row in points]
        (home / classes[label] / f"{name}.txt").write_text("".join(lines))
    return home


def write_caches(folder: Path, lists: bool = True) -> Path:
    home = folder / "modelnet40_normal_resampled"
    home.mkdir(parents=True)
    for split in SPLITS:
        rows = [row for row in shapes(CLASSES["40"]) if row[2] == split]
        content = [[row[3] for row in rows], [np.array([row[1]]).astype(np.int32) for row in rows]]
        (home / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(content, protocol=3))
    if lists:
        write_lists(home, CLASSES["40"], "modelnet40")
    return home


def write_shards(folder: Path, names: bool = True) -> Path:
    home = folder / "modelnet40_ply_hdf5_2048"
    home.mkdir(parents=True)
    (home / "shape_names.txt").write_text("\n".join(CLASSES["40"]) + "\n")
    for split in SPLITS:
        rows = [row for row in shapes(CLASSES["40"]) if row[2] == split]
        listed = ""
        for i, part in enumerate([rows[:25], rows[25:]]):
            with h5py.File(home / f"ply_data_{split}{i}.h5", "w") as file:
                stack = np.stack([row[3] for row in part])
                file.create_dataset("data", data=stack[..., :3], compression="gzip", chunks=(4, 7, 3))
                file.create_dataset("normal", data=stack[..., 3:])
                file.create_dataset("faceId", data=np.zeros(stack.shape[:2], np.int32))
                file.create_dataset("label", data=np.array([[row[1]] for row in part], np.uint8))
            listed += f"data/modelnet40_ply_hdf5_2048/ply_data_{split}{i}.h5\n"
            if names:
                entries = [f"{CLASSES['40'][row[1]]}/{row[0]}.ply" for row in part]
                (home / f"ply_data_{split}_{i}_id2file.json").write_text(json.dumps(entries))
        (home / f"{split}_files.txt").write_text(listed)
    return home


def write_meshes(folder: Path, number: str = "40") -> Path:
    home = folder / f"ModelNet{number}"
    classes = CLASSES[number]
    for name, label, split, points in shapes(classes):
        place = home / classes[label] / split
        place.mkdir(parents=True)
        header = "OFF4 2 0" if label % 3 == 0 else "OFF\n4 2 0"
        vertices = "\n".join(" ".join(f"{1000 * value:.6f}" for value in row[:3]) for row in points[:4])
        (place / f"{name}.off").write_text(f"{header}\n{vertices}\n3 0 1 2\n3 0 3 1 \n")
        (place / f"._{name}.off").write_bytes(b"\0\5\26\7")  # what macOS leaves in archives
    return home


WRITERS: dict[str, Callable[[Path], Path]] = {
    "resampled": write_resampled,
    "caches": write_caches,
    "shards": write_shards,
    "meshes": write_meshes,
}
POINT_FORMATS = ["resampled", "caches", "shards"]


def read_all(source: Source) -> list[np.ndarray]:
    """Read every shape; the caches have 7 points in files that are named after 8192."""
    return [item.read().points for item in source.items]
