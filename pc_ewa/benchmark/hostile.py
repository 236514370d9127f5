"""Files made to do harm, and the commands that must refuse them."""

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from pc_ewa.benchmark.disturbed import Toy

Change = Callable[[Any], object]
# Makes the file in a folder, and returns the arguments of the command that must refuse it.
Maker = Callable[[Toy, Path], list[str]]


class _Code:
    """An object whose pickle creates a folder when Python loads it, as proof that code was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _hdf5(change: Change) -> Maker:
    def make(toy: Toy, folder: Path) -> list[str]:
        path = folder / "hostile.h5"
        path.write_bytes(toy.data.read_bytes())
        with h5py.File(path, "a") as file:
            change(file)
        return ["train", str(toy.config), f"data.path={path}", f"output={folder}/run"]

    return make


def _stored(key: str, **options: Any) -> Change:
    """Return a change that replaces an HDF5 dataset by one with other options and the same attributes."""

    def change(file: Any) -> None:
        attributes = dict(file[key].attrs)
        del file[key]
        file.create_dataset(key, **options).attrs.update(attributes)

    return change


def _linked(key: str, target: object) -> Change:
    def change(file: Any) -> None:
        file.move(key, f"moved {key}")
        file[key] = target

    return change


def _virtual(file: Any) -> None:
    shape = file["data"].shape
    layout = h5py.VirtualLayout(shape, "i2")
    layout[...] = h5py.VirtualSource("absent.h5", "data", shape)
    attributes = dict(file["data"].attrs)
    del file["data"]
    file.create_virtual_dataset("data", layout, fillvalue=0).attrs.update(attributes)


def _outside(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, "external": [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]}


def _packed(shape: tuple[int, ...], chunks: tuple[int, ...]) -> dict[str, Any]:
    return {"shape": shape, "dtype": "i2", "chunks": chunks, "compression": "gzip"}


def _zeros(file: Any) -> None:
    """Store 1.2 GB of zeros as a gzip bomb."""
    _stored("data", **_packed((36, 5_600_000, 3), (1, 560_000, 3)))(file)
    # Compress one chunk and write it everywhere: this avoids compressing 1.2 GB. gzip packs zeros 1,000 to 1.
    packed = zlib.compress(bytes(560_000 * 3 * 2), 9)
    for shape in range(36):
        for begin in range(0, 5_600_000, 560_000):
            file["data"].id.write_direct_chunk((shape, begin, 0), packed)


def _not_numbers(file: Any) -> None:
    del file["data"]
    file["data"] = np.full((36, 64, 3), np.nan, "f4")


def _torch(change: Change, name: str = "merged_last.pt") -> Maker:
    """Return a maker that changes the content of one of our checkpoints."""

    def make(toy: Toy, folder: Path) -> list[str]:
        content = torch.load(toy.whole.folder / "checkpoints" / name, weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, folder / "hostile.pt")
        return ["evaluate", str(folder / "hostile.pt")]

    return make


def _records(change: Callable[[str, bytes], bytes], deflated: str = "none") -> Maker:
    """Return a maker that changes the records in the archive of a checkpoint, and deflates those with a suffix."""

    def make(toy: Toy, folder: Path) -> list[str]:
        path = folder / "hostile.pt"
        torch.save({"model": {"weight": torch.zeros(12_345)}}, folder / "sound.pt")
        with zipfile.ZipFile(folder / "sound.pt") as sound, zipfile.ZipFile(path, "w") as archive:
            for record in sound.infolist():
                method = zipfile.ZIP_DEFLATED if record.filename.endswith(deflated) else zipfile.ZIP_STORED
                archive.writestr(record.filename, change(record.filename, sound.read(record)), method)
        return ["evaluate", str(path), "--config", str(toy.config)]

    return make


def _pickle(content: bytes) -> Maker:
    return _records(lambda name, old: content if name.endswith("data.pkl") else old)


def _code(archive: bool) -> Maker:
    def make(toy: Toy, folder: Path) -> list[str]:
        code = _Code(folder / "the code ran")
        if archive:
            torch.save({"model": code}, folder / "hostile.pt")
        else:
            (folder / "hostile.pt").write_bytes(pickle.dumps({"model": code}))
        return ["evaluate", str(folder / "hostile.pt"), "--config", str(toy.config)]

    return make


def _safetensors(header: dict[str, Any], length: int | None = None) -> Maker:
    def make(toy: Toy, folder: Path) -> list[str]:
        text = json.dumps(header).encode()
        path = folder / "hostile.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(16))
        return ["evaluate", str(path), "--config", str(toy.config)]

    return make


def _yaml(text: str) -> Maker:
    def make(toy: Toy, folder: Path) -> list[str]:
        path = folder / "hostile.yaml"
        path.write_text(f"{toy.config.read_text()}\n{text}\n", encoding="utf-8")
        return ["train", str(path), f"output={folder}/run"]

    return make


def _override(text: str) -> Maker:
    return lambda toy, folder: ["train", str(toy.config), f"output={folder}/run", text]


def _with(*keys: str, value: Any) -> Change:
    """Return a change that sets the value under a path of keys in a checkpoint."""

    def change(content: dict[str, Any]) -> None:
        *outer, last = keys
        for key in outer:
            content = content[key]
        content[last] = value

    return change


def _not_finite(content: dict[str, Any]) -> None:
    next(iter(content["base_model"].values())).fill_(float("nan"))


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _shared(levels: int) -> Any:
    """Return nested lists that are small in memory but have 10 to the power of `levels` items when written out."""
    value: Any = ["x"]
    for _ in range(levels):
        value = [value] * 10
    return value


# "Billion laughs": each list has ten aliases of the one before, 10**9 items in all.
_ALIASES = "project: [&a0 [x, x, x, x, x, x, x, x, x, x]"
_ALIASES += "".join(f", &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)) + "]"
_LARGE = {"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
_OVERFLOW = {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}
# In a pickle b"M90" is the integer 12,345, the size of the tensor in `_records`. Replace it by 2**30.
_GROWN = _records(lambda name, old: old.replace(b"M90", b"J\0\0\0\x40") if name.endswith("data.pkl") else old)

CASES: dict[str, Maker] = {
    "HDF5: external link": _hdf5(_linked("data", h5py.ExternalLink("other.h5", "/data"))),
    "HDF5: external link to a device": _hdf5(_linked("label", h5py.ExternalLink("/dev/zero", "/label"))),
    "HDF5: soft link to nothing": _hdf5(_linked("data", h5py.SoftLink("/nowhere"))),
    "HDF5: points stored in /etc/passwd": _hdf5(_stored("data", **_outside((36, 4, 3), "i2"))),
    "HDF5: labels stored in /etc/passwd": _hdf5(_stored("label", **_outside((36,), "i8"))),
    "HDF5: virtual dataset": _hdf5(_virtual),
    "HDF5: 12 GB declared, none stored": _hdf5(_stored("data", **_packed((36, 10**8, 3), (1, 2048, 3)))),
    "HDF5: 10 TB declared, none stored": _hdf5(_stored("data", **_packed((10**9, 2048, 3), (1, 2048, 3)))),
    "HDF5: a chunk of 1.2 GB": _hdf5(_stored("data", **_packed((36, 2 * 10**8, 3), (1, 2 * 10**8, 3)))),
    "HDF5: a gzip bomb": _hdf5(_zeros),
    "HDF5: labels are text": _hdf5(_stored("label", data=["a"] * 36)),
    "HDF5: labels are a group": _hdf5(lambda file: (file.pop("label"), file.create_group("label"))),
    "HDF5: class names nested deeply": _hdf5(lambda file: file.attrs.update({"class_names": "[" * 60_000})),
    "HDF5: class names are numbers": _hdf5(lambda file: file.attrs.update({"class_names": "[1, 1, 1]"})),
    "HDF5: points are NaN": _hdf5(_not_numbers),
    "pt: code in an archive": _code(True),
    "pt: code in a plain pickle": _code(False),
    "pt: a deflated record of 600 MB": _records(
        lambda name, old: bytes(600_000_000) if name.endswith("data/0") else old, "data/0"
    ),
    "pt: a tensor larger than its file": _GROWN,
    "pt: 40 GB on four bytes, stride 0": _torch(lambda content: {"model": {"w": torch.zeros(1).expand(10**10)}}),
    "pt: lists nested a million deep": _pickle(b"\x80\x02" + b"]" * 1_000_000 + b"."),
    "pt: a bytearray of 2 GB": _pickle(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
    "pt: memo number 2 billion": _pickle(b"\x80\x02}r\xff\xff\xff\x7f."),
    "pt: weights are NaN": _torch(_not_finite),
    "pt: config of dim 1,000,000": _torch(_with("config", "model", "dim", value=1_000_002)),
    "pt: config of depth 1,000,000": _torch(_with("config", "model", "depth", value=10**6)),
    "pt: config of a million experts": _torch(_with("config", "ewa", value={"num_experts": 10**6}), "last.pt"),
    "pt: config of lists in lists": _torch(_with("config", "seed", value=_shared(9))),
    "pt: config nested 100 deep": _torch(_with("config", "model", "dim", value=_nested(100))),
    "pt: config is text": _torch(_with("config", value="x")),
    "pt: class names are numbers": _torch(_with("class_names", value=[1, 1, 1])),
    "pt: weights are text": _torch(_with("base_model", value="x")),
    "safetensors: a tensor larger than its file": _safetensors(_LARGE),
    "safetensors: a size beyond 64 bits": _safetensors(_OVERFLOW),
    "safetensors: a header of 2**60 bytes": _safetensors({}, 2**60),
    "YAML: aliases of aliases": _yaml(_ALIASES),
    "YAML: nested 3,000 deep": _yaml("project: " + "[" * 3000 + "]" * 3000),
    "YAML: a number of 100,000 digits": _yaml("seed: " + "9" * 100_000),
    "YAML: a number beyond float": _yaml("seed: 1e999"),
    "YAML: an object of Python": _yaml("seed: !!python/object/apply:os.getpid []"),
    "YAML: wrong types": _yaml("seed: {a: [1]}"),
    "override: nested 3,000 deep": _override("seed=" + "[" * 3000),
    "override: a number of 100,000 digits": _override("seed=" + "9" * 100_000),
}
