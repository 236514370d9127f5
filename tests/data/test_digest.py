import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pc_ewa.data import Clouds, describe_change, digest, read_hdf5, write_hdf5


def clouds(count: int = 9, points: int = 8, classes: tuple[str, ...] = ("ball", "box", "rod"), seed: int = 0) -> Clouds:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(classes)
    return Clouds(torch.randn(count, points, 3, generator=random), None, labels, classes, "z", "toy")


def told(before: Clouds, after: Clouds) -> str | None:
    stored = json.loads(json.dumps(digest({"train": before})))
    return describe_change(stored, digest({"train": after}))


def test_the_same_data_have_the_same_digest_wherever_they_are(tmp_path: Path) -> None:
    points = np.random.RandomState(0).randn(9, 5, 3).astype(np.float32)
    for folder in ("here", "there"):
        write_hdf5(tmp_path / folder / "a.h5", points, [0, 1, 2] * 3, ["a", "b", "c"], up_axis="z", dtype="float32")
    here, there = (read_hdf5(tmp_path / folder / "a.h5", "train", name=folder) for folder in ("here", "there"))
    assert told(here, there) is None
    assert told(here, replace(there, name="other", shape_names=tuple("123456789"))) is None
    memory = Clouds(torch.from_numpy(points), None, here.labels, here.class_names, "z", "memory")
    assert digest({"train": memory}) == digest({"train": here})
    assert told(memory, here.select(range(9))) is None


def test_a_digest_is_frozen() -> None:
    of_train = digest({"train": clouds()})["splits"]["train"]
    arange = Clouds(torch.arange(24.0).view(2, 4, 3), None, torch.tensor([0, 1]), ("a", "b"), "y", "toy")
    assert (of_train["samples"], of_train["points_per_sample"], of_train["parts"]) == (9, 8, "none")
    assert digest({"test": arange}) == {
        "classes": ["a", "b"],
        "splits": {
            "test": {
                "samples": 2,
                "points_per_sample": 4,
                "up_axis": "y",
                "labels": "eb82aaee034ca970",
                "points": "f384735bc83e1ecb",
                "parts": "none",
            }
        },
    }


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        (clouds(10), ["train", "10 samples", "before 9"]),
        (clouds(points=7), ["train", "7 points", "before 8"]),
        (clouds(classes=("box", "rod", "zball")), ["gone: class ball", "new: class zball"]),
        (clouds(classes=("rod", "box", "ball")), ["classes", "order"]),
        (clouds(seed=1), ["train", "other points"]),
        (replace(clouds(), labels=clouds().labels.flip(0)), ["train", "other labels"]),
        (replace(clouds(), up_axis="y"), ["train", "axis"]),
        (replace(clouds(), points=clouds().points.flip(0)), ["train", "other points"]),
        (replace(clouds(), parts=torch.zeros(9, 8, dtype=torch.uint8)), ["train", "other parts"]),
    ],
)
def test_each_change_is_told(changed: Clouds, facts: list[str]) -> None:
    change = told(clouds(), changed)
    assert change is not None
    assert [fact for fact in facts if fact not in change] == []
    assert "\n" not in change


def test_one_coordinate_of_a_small_set_is_noticed() -> None:
    points = clouds().points.clone()
    points[4, 3, 1] += 1e-6
    assert told(clouds(), replace(clouds(), points=points)) == "train has other points"


def test_splits_that_come_and_go() -> None:
    before, after = digest({"train": clouds(), "val": clouds()}), digest({"train": clouds(), "test": clouds()})
    assert describe_change(before, after) == "the split test is new; there is no split val any more"


def test_no_digest_differs_from_nothing_and_a_damaged_one_is_told() -> None:
    now = digest({"train": clouds()})
    assert describe_change(None, now) is None
    damaged: list[Any] = [7, {}, {"classes": [1], "splits": {}}, {"classes": [], "splits": {"train": 1}}]
    for before in damaged:
        assert "damaged" in str(describe_change(before, now))
    evil = {"classes": ["\x1b[31m" * 10_000], "splits": {"train": {"samples": "\n" * 99}}}
    change = describe_change(evil, now)
    assert change is not None
    assert change.isprintable()
    assert len(change) < 300


def test_a_large_split_is_sampled_to_its_end_and_quickly() -> None:
    rows = torch.zeros(12_311, dtype=torch.int64)
    points = torch.arange(2.0)[:, None, None].expand(2, 8192, 3)  # takes no memory
    large = Clouds(points, None, torch.zeros_like(rows), ("a",), "z", "large", rows=rows)
    start = time.process_time()
    before = digest({"train": large})
    assert time.process_time() - start < 2
    last_is_another = replace(large, rows=rows.clone().index_fill(0, torch.tensor([12_310]), 1))
    assert describe_change(before, digest({"train": last_is_another})) == "train has other points"
