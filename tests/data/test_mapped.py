"""A mapped file that others change ends in one line: never in a signal, never in other points."""

import copy
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pc_ewa.data import Clouds, read_hdf5
from pc_ewa.errors import DataError

Change = Callable[[Path], object]


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    path = tmp_path / "mapped.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.random.RandomState(0).rand(64, 200, 3).astype("f4")
        file["part"] = np.zeros((64, 200), "u1")
        file["label"] = np.arange(64) % 2
        file.attrs.update({"class_names": '["a", "b"]', "up_axis": "z"})
    return path


def read(path: Path) -> Clouds:
    clouds = read_hdf5(path, "train", name="toy")
    assert clouds.file is not None
    return clouds


def overwrite(path: Path) -> None:
    time.sleep(0.02)  # times of files are that coarse
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(bytes(100))


CHANGES: list[Change] = [lambda p: os.truncate(p, 10_000), lambda p: os.truncate(p, 0), overwrite, Path.touch]
READS: list[Callable[[Clouds], object]] = [
    lambda c: c.batch([0, 63]),
    lambda c: c.select([1]).batch([0]),
    lambda c: c.part_labels([0, 63]),
    lambda c: c.to("cpu"),
    lambda c: c.split_validation(0.5, 0)[1].batch([0]),
]


@pytest.mark.parametrize("read_some", READS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_by_every_read(mapped: Path, change: Change, read_some: Callable[[Clouds], object]) -> None:
    clouds = read(mapped)
    read_some(clouds)
    time.sleep(0.02)
    change(mapped)
    with pytest.raises(DataError, match=str(mapped)) as caught:
        read_some(clouds)
    assert "\n" not in str(caught.value)


def test_a_change_during_the_read_is_noticed(mapped: Path) -> None:
    clouds = read(mapped)
    index = torch.arange(3)

    class Slow:
        def __getitem__(self, _: object) -> torch.Tensor:
            overwrite(mapped)
            return torch.zeros(3, 200, 3)

    with pytest.raises(DataError, match="was changed while it was in use"):
        clouds._picked(Slow(), index)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [Path.unlink, lambda p: p.with_name("new").rename(p)])
def test_a_file_that_is_replaced_or_removed_stays_as_it_was(mapped: Path, change: Change) -> None:
    clouds = read(mapped)
    before = clouds.batch(range(64))[0]
    mapped.with_name("new").write_bytes(bytes(10))
    change(mapped)
    assert torch.equal(clouds.batch(range(64))[0], before)


def test_what_is_in_memory_asks_no_file(mapped: Path) -> None:
    clouds = read(mapped)
    moved, copied, sent = clouds.to("cpu"), copy.deepcopy(clouds), pickle.loads(pickle.dumps(clouds))
    os.truncate(mapped, 0)
    for one in (moved, copied, sent):
        assert one.file is None
        assert one.batch([0])[0].shape == (1, 200, 3)


def test_descriptors_are_given_back(mapped: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        read(mapped).batch([0])
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
