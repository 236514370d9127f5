"""One frozen number for each protocol: models filled by the rule of `parity` on the toy clouds, nothing trained.

The numbers are those of the code before its evaluation loops became one (2026-11-27, torch 2.13.0 on a CPU). They
change only when a protocol does, and then the page of results has to say so.
"""

from pathlib import Path
from typing import Any

import pytest
from parity import filled_by_rule
from small_models import small
from torch import nn

from pc_ewa.data import Clouds, load_dataset
from pc_ewa.data.parts import parts_of_classes
from pc_ewa.eval import (
    FewShot,
    Fold,
    evaluate_classifier,
    evaluate_linear_svm,
    evaluate_pretraining,
    evaluate_segmenter,
    evaluate_voted,
)

NEAR = {"rel": 1e-5, "abs": 1e-7}


@pytest.fixture
def clouds(toy_parts_file: Path) -> dict[str, Clouds]:
    return {split: load_dataset("hdf5", split, path=str(toy_parts_file)) for split in ("train", "test")}


def model(name: str, **arguments: Any) -> nn.Module:
    return filled_by_rule(small(name, num_classes=3, **arguments))


def test_accuracy(clouds: dict[str, Clouds]) -> None:
    net = model("point_mae_classifier")
    result = evaluate_classifier(net, clouds["train"], 48, batch_size=7)
    assert result.confusion.tolist() == GOLDEN["confusion"]
    assert (result.overall, result.mean_class) == pytest.approx(GOLDEN["accuracy"], **NEAR)
    total = net.eval()(clouds["train"].batch(range(4))[0][:, :48]).double().sum().item()
    assert total == pytest.approx(GOLDEN["logits"], **NEAR)


def test_voted_accuracy(clouds: dict[str, Clouds]) -> None:
    result = evaluate_voted(model("point_mae_classifier"), clouds["train"], 48, votes=3, seed=1, batch_size=7)
    assert result.confusion.tolist() == GOLDEN["voted"]


def test_segmentation(clouds: dict[str, Clouds]) -> None:
    parts = parts_of_classes(list(clouds.values()))
    result = evaluate_segmenter(model("point_mae_segmenter"), clouds["test"], parts, 48, batch_size=5)
    assert (result.instance_miou, result.class_miou) == pytest.approx(GOLDEN["miou"], **NEAR)
    assert (result.points_right, result.points) == GOLDEN["points"]


def test_linear_svm(clouds: dict[str, Clouds]) -> None:
    result = evaluate_linear_svm(model("point_mae"), clouds["train"], clouds["test"], 48, batch_size=7)
    assert (result.accuracy.correct, result.c, result.feature_dim) == GOLDEN["svm"]


@pytest.mark.parametrize("name", ["point_mae", "dvae", "point_bert"])
@pytest.mark.parametrize("sampling", ["farthest", "random"])
def test_pretraining_loss(name: str, sampling: Any, clouds: dict[str, Clouds]) -> None:
    result = evaluate_pretraining(model(name), clouds["test"], 48, sampling=sampling, batch_size=5)
    assert result.metrics()["loss"] == pytest.approx(GOLDEN[f"{name} {sampling}"], **NEAR)


def test_few_shot() -> None:
    folds = [Fold(5, 10, i, accuracy) for i, accuracy in enumerate((0.9, 0.95, 0.85))]
    result = FewShot(folds).metrics()
    assert (result["5way_10shot_accuracy"], result["5way_10shot_std"]) == pytest.approx((0.9, 0.05), **NEAR)


def test_bf16_is_near(clouds: dict[str, Clouds]) -> None:
    losses = [
        evaluate_pretraining(model("point_mae"), clouds["test"], 48, batch_size=5, precision=precision).metrics()[
            "loss"
        ]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


GOLDEN: dict[str, Any] = {
    "confusion": [[0, 5, 3], [0, 3, 5], [0, 5, 3]],
    "accuracy": (0.25, 0.25),
    "logits": -4.079020172357559,
    "voted": [[0, 1, 7], [0, 5, 3], [0, 1, 7]],
    "miou": (0.2569444444444445, 0.2569444444444445),
    "points": (296, 576),
    "svm": (6, 10.0, 24),
    "point_mae farthest": 3.2892611026763916,
    "point_mae random": 3.2567969957987466,
    "dvae farthest": 1.5950353940327961,
    "dvae random": 1.6375596523284912,
    "point_bert farthest": 15.169415473937988,
    "point_bert random": 16.103602409362793,
}
