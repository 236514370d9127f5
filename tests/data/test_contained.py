"""HDF5 that refers elsewhere, or declares more than it holds, is refused by every reader: in one line, at once."""

import json
import os
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pc_ewa.data import read_hdf5
from pc_ewa.data.hdf5 import open_layout
from pc_ewa.data.prepare import describe
from pc_ewa.data.published import scanobjectnn
from pc_ewa.data.published.modelnet import MODELNET40
from pc_ewa.errors import DataError

Change = Callable[[h5py.File], object]
Reader = Callable[[Path], object]


def ours(path: Path) -> object:
    return read_hdf5(path, "train", name="toy").batch([0])


def modelnet(path: Path) -> object:
    home = path.parent
    for split in ("train", "test"):
        (home / f"{split}_files.txt").write_text(f"{path.name}\n")
    return MODELNET40.source(home).items[0].read()


def scanned(path: Path) -> object:
    return scanobjectnn._File(path, 8, True).read(0, "a")


READERS: dict[str, Reader] = {"ours": ours, "describe": describe, "modelnet": modelnet, "scanobjectnn": scanned}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A file in which all readers find what they look for."""
    path = tmp_path / "sound.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.random.RandomState(0).rand(8, 2048, 3).astype("f4")
        file["label"] = np.arange(8) % 2
        file.attrs.update({"class_names": '["a", "b"]', "up_axis": "z"})
    return path


def again(key: str, **options: object) -> Change:
    """Replace a dataset by one with other options of its storage."""

    def change(file: h5py.File) -> None:
        del file[key]
        file.create_dataset(key, **options)

    return change


def link(key: str, target: object) -> Change:
    def change(file: h5py.File) -> None:
        file.move(key, f"stored {key}")
        file[key] = target

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8, 2048, 3), "f4")
    layout[...] = h5py.VirtualSource("absent.h5", "data", (8, 2048, 3))
    del file["data"]
    file.create_virtual_dataset("data", layout, fillvalue=0)


ELSEWHERE: list[tuple[str, Change, str]] = [
    ("external link", link("data", h5py.ExternalLink("other.h5", "/data")), "link"),
    ("external link to labels", link("label", h5py.ExternalLink("other.h5", "/label")), "link"),
    ("dangling link", link("label", h5py.ExternalLink("absent.h5", "/label")), "link"),
    ("link to a pipe", link("data", h5py.ExternalLink("pipe", "/data")), "link"),
    ("soft link", link("data", h5py.SoftLink("/stored data")), "link"),
    ("soft link out of the file", link("label", h5py.SoftLink("/out/label")), "link"),
    (
        "external storage",
        again("data", shape=(8, 2048, 3), dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
        "/etc/passwd",
    ),
    (
        "external labels",
        again("label", shape=(8,), dtype="i8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
        "/etc/passwd",
    ),
    ("virtual", virtual, "virtual"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("change", "word"), [case[1:] for case in ELSEWHERE], ids=[case[0] for case in ELSEWHERE])
def test_what_lies_elsewhere_is_refused(sound: Path, reader: str, change: Change, word: str) -> None:
    with h5py.File(sound.with_name("other.h5"), "w") as other, h5py.File(sound, "a") as file:
        for key in ("data", "label"):
            file.copy(key, other)
        file["out"] = h5py.ExternalLink("other.h5", "/")
        change(file)
    os.mkfifo(sound.with_name("pipe"))
    with pytest.raises(DataError, match=word) as caught:
        READERS[reader](sound)
    assert str(sound) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["split", "name", "part"])
def test_a_dangling_link_is_not_an_absent_column(sound: Path, key: str) -> None:
    with h5py.File(sound, "a") as file:
        file[key] = h5py.SoftLink("/nowhere")
    with pytest.raises(DataError, match=f"{key} is a link to /nowhere"):
        ours(sound)


def test_what_is_not_used_may_lie_anywhere(sound: Path) -> None:
    with h5py.File(sound, "a") as file:
        file["notes"] = h5py.ExternalLink("absent.h5", "/notes")
    ours(sound)


def bomb(shape: tuple[int, ...], key: str = "data", chunks: tuple[int, ...] = (1, 2048, 3), write: int = 1) -> Change:
    """Declare much, and store some rows of it."""

    def change(file: h5py.File) -> None:
        dtype = file[key].dtype
        again(key, shape=shape, dtype=dtype, chunks=chunks, compression="gzip", maxshape=(None, *shape[1:]))(file)
        file[key][:write] = np.zeros((write, *shape[1:]), dtype)

    return change


def zeros(file: h5py.File) -> None:
    """Store all 1.6 GB that are declared: zeros, which gzip packs 1,000 to 1; each chunk is the same bytes."""
    count, rows = 32_768, 256
    again("data", shape=(count, 4096, 3), dtype="f4", chunks=(rows, 4096, 3), compression="gzip")(file)
    packed = zlib.compress(bytes(rows * 4096 * 12), 9)
    for begin in range(0, count, rows):
        file["data"].id.write_direct_chunk((begin, 0, 0), packed)
    again("label", data=np.arange(count) % 2)(file)


def same_name(file: h5py.File) -> None:
    """Give each of 100,000 shapes the one name of 1 MB."""
    count = 100_000
    again("data", data=np.zeros((count, 1, 3), "f4"))(file)
    again("label", data=np.arange(count) % 2)(file)
    names = file.create_dataset("name", (count,), h5py.string_dtype())
    names[0] = "x" * 2**20
    where = names.id.get_offset()
    file.flush()
    with open(file.filename, "r+b") as raw:
        raw.seek(where)
        entry = raw.read(16)
        raw.seek(where)
        raw.write(entry * count)


HOSTILE: dict[str, Change] = {
    "24 GB of which nothing is stored": bomb((10**6, 2048, 3)),
    "22 TiB": bomb((10**9, 2048, 3)),
    "more bytes than 64 bits can count": bomb((2**50, 2048, 3)),
    "gzip packs zeros": zeros,
    "a chunk of 400 MB": bomb((8, 2048, 3), chunks=(15_000, 2048, 3), write=0),
    "a chunk of 100 MB": bomb((8, 2048, 3), chunks=(4_000, 2048, 3), write=0),
    "labels": bomb((10**11,), "label", (1024,), write=8),
    "not written to the end": bomb((8, 2048, 3), write=5),
    "not written at all": again("data", shape=(8, 2048, 3), dtype="f4"),
    "one long name for all": same_name,
    "classes nested deeply": lambda file: file.attrs.update({"class_names": "[" * 60_000}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_small_files_that_declare_much(sound: Path, change: Change) -> None:
    with h5py.File(sound, "a") as file:
        change(file)
    assert sound.stat().st_size < 6e6
    begin = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            ours(sound)
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 1
    assert str(sound) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("change", [HOSTILE["labels"], HOSTILE["22 TiB"], HOSTILE["a chunk of 400 MB"]])
def test_published_files_that_declare_much(sound: Path, change: Change) -> None:
    with h5py.File(sound, "a") as file:
        change(file)
    for reader in (modelnet, scanned):
        with pytest.raises(DataError):
            reader(sound)


def test_an_attribute_of_many_bytes(sound: Path) -> None:
    with h5py.File(sound, "a", track_order=True) as file:
        file.attrs["class_names"] = json.dumps([str(i) for i in range(200_000)])
    with pytest.raises(DataError, match="class_names has"):
        ours(sound)


def test_well_packed_data_are_read(tmp_path: Path) -> None:
    """Padded clouds pack 100 to 1, and small arrays may pack as they like."""
    path = tmp_path / "padded.h5"
    points = np.zeros((600, 10_000, 3), np.float32)
    points[:, :100] = np.random.RandomState(0).rand(600, 100, 3)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=points, compression="gzip", compression_opts=1)
        file.create_dataset("label", data=np.zeros(600, int), compression="gzip")
        file.attrs.update({"class_names": '["a"]', "up_axis": "z"})
    with open_layout(path) as layout:
        assert layout.arrays["data"].shape == points.shape
