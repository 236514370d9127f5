"""The model in the package: small, of the bundled data alone, and as good as its card says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shape_files import npy

import pc_ewa
from pc_ewa.bundled import bundled
from pc_ewa.config import load_experiment
from pc_ewa.data import load_dataset
from pc_ewa.data.transforms import rotate

FOLDER = bundled("models/furniture")
ABOUT = json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def model() -> Any:
    return pc_ewa.load_model("furniture", device="cpu")


def test_it_is_small_and_made_by_the_config_of_its_name() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 1.5e6
    record, experiment = ABOUT["training"]["config"], load_experiment("configs/furniture.yaml").model_dump(mode="json")
    assert record["data"]["name"] == "sweethome3d"
    for key, value in record.items():  # later versions have more keys
        now = experiment[key]
        assert value == ({name: now[name] for name in value} if isinstance(value, dict) else now), key
    assert experiment["init_from"] is None


def test_it_is_as_good_as_its_card_says(model: Any) -> None:
    clouds = load_dataset("sweethome3d", "test")
    points = clouds.batch(range(len(clouds)))[0]
    metrics = ABOUT["training"]["metrics"]
    assert model.class_names == clouds.class_names
    # Another kind of CPU rounds otherwise: a shape or two on the edge may change sides.
    assert abs(accuracy(model, points, clouds.labels) - metrics["test_accuracy"]) <= 2 / len(clouds)
    some, labels = points[::4], clouds.labels[::4]
    turned = rotate(some, torch.Generator().manual_seed(0), "z")
    assert abs(accuracy(model, turned, labels) - accuracy(model, some, labels)) < 0.15
    card = (FOLDER / "README.md").read_text()
    for score in metrics["test_accuracy_by_seed"].values():
        assert f"{score:.4g}" in card
    assert len(metrics["test_accuracy_by_seed"]) == 3


def accuracy(model: Any, points: torch.Tensor, labels: torch.Tensor) -> float:
    found = model.predict(points)
    hits = [model.class_names[label] == prediction.label for prediction, label in zip(found, labels, strict=True)]
    return sum(hits) / len(hits)


def test_a_dense_scan_of_a_chair_that_lies_is_a_chair(model: Any, tmp_path: Path) -> None:
    """Its clouds of 1,024 points are what such a scan is cut to."""
    random = np.random.RandomState(0)
    seat, back = (
        random.uniform([-0.5, -0.5, 0], [0.5, 0.5, 0.08], (9000, 3)),
        random.uniform([-0.5, 0.42, 0], [0.5, 0.5, 1.0], (9000, 3)),
    )
    legs = [
        random.uniform([x, y, -0.9], [x + 0.08, y + 0.08, 0], (2000, 3)) for x in (-0.5, 0.42) for y in (-0.5, 0.42)
    ]
    chair = np.concatenate([seat, back, *legs])
    path = tmp_path / "chair.npy"
    path.write_bytes(npy(1000 * chair))
    assert model.predict(path).label == "chair"
    lying = 50 + chair[:, [0, 2, 1]] * [1, 1, -1]
    assert model.predict(lying, up="y").label == "chair"


def test_credit_is_given() -> None:
    card = (FOLDER / "README.md").read_text()
    for fact in ("CC BY", "ATTRIBUTION.md", "pc-ewa train furniture", "not a benchmark"):
        assert fact in card
