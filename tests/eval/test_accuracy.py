"""Accuracy against a count by hand, and what evaluation does to clouds and to the model."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pc_ewa import create_model, load_dataset, merge_experts, upcycle
from pc_ewa.data import Clouds
from pc_ewa.eval import Accuracy, EvalSettings, evaluate_classifier
from pc_ewa.eval.batches import EvalBatch
from pc_ewa.ewa import routed_experts

LABELS = [0, 0, 0, 0, 1, 1, 2]
ANSWERS = [0, 0, 1, 2, 1, 1, 0]


class Answers(nn.Module):
    """Answers with what is written into the first coordinate of the first point, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, points: Tensor) -> Tensor:
        self.seen.append(points)
        return nn.functional.one_hot(points[:, 0, 0].long(), 4).float()


def clouds_that_say(answers: list[int], labels: list[int], num_points: int = 2) -> Clouds:
    points = torch.zeros(len(answers), num_points, 3)
    points[:, 0, 0] = torch.tensor(answers).float()
    return Clouds(points, None, torch.tensor(labels), ("a", "b", "c", "d"), "y", "toy")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_accuracy_is_what_one_counts_by_hand(batch_size: int) -> None:
    clouds = clouds_that_say(ANSWERS, LABELS)
    accuracy = evaluate_classifier(Answers(), clouds, EvalSettings(2, normalize=False, batch_size=batch_size))
    # Class a: 2 of 4, one taken for b and one for c; b: 2 of 2; c: 0 of 1, taken for a; d has no samples.
    assert accuracy.confusion.tolist() == [[2, 1, 1, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert (accuracy.correct, accuracy.samples) == (4, 7)
    assert accuracy.overall == 4 / 7
    assert accuracy.mean_class == pytest.approx((2 / 4 + 2 / 2 + 0 / 1) / 3)
    assert accuracy.standard_error == pytest.approx(math.sqrt(4 / 7 * 3 / 7 / 7))


def test_all_right_has_no_standard_error() -> None:
    accuracy = Accuracy(torch.tensor([[3, 0], [0, 2]]))
    assert (accuracy.overall, accuracy.mean_class, accuracy.standard_error) == (1, 1, 0)


def test_every_class_and_the_most_frequent_confusions_are_told() -> None:
    names = ("desk", "chair", "bed", "lamp")
    accuracy = Accuracy(torch.tensor([[2, 1, 1, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]), names)
    assert accuracy.per_class == (("desk", 4, 2), ("chair", 2, 2), ("bed", 3, 0), ("lamp", 0, 0))
    assert accuracy.describe() == "accuracy 44.44% (4/9)"
    assert accuracy.overall == 4 / 9
    assert accuracy.metrics() == {
        "accuracy": 4 / 9,
        "mean_class_accuracy": pytest.approx(0.5),
        "correct": 4,
        "standard_error": accuracy.standard_error,
    }
    assert accuracy.table().splitlines() == [
        "overall accuracy     44.44% (4/9, standard error 16.56%)",
        "mean class accuracy  50.00%",
        "  desk     50.0% (2/4)",
        "  chair   100.0% (2/2)",
        "  bed       0.0% (0/3)",
        "  lamp   no samples",
        "most frequent confusions (true class -> taken for)",
        "  bed -> desk    3",
        "  desk -> chair  1",
        "  desk -> bed    1",
    ]
    content = json.loads(json.dumps(accuracy.to_json()))
    assert content["confusion"] == accuracy.confusion.tolist()
    assert content["per_class"][2] == {"name": "bed", "samples": 3, "correct": 0}
    assert (content["samples"], content["votes"], content["class_names"]) == (9, 1, list(names))


def test_ten_confusions_at_most_and_none_if_all_is_right() -> None:
    lines = Accuracy(torch.ones(5, 5, dtype=torch.int64)).table().splitlines()
    assert [line.split() for line in lines[8:10]] == [["0", "->", "1", "1"], ["0", "->", "2", "1"]]
    assert len(lines) == 2 + 5 + 1 + 10
    assert "confusions" not in Accuracy(torch.eye(5, dtype=torch.int64)).table()


def test_a_vote_says_so_everywhere() -> None:
    plain, voted = Accuracy(torch.tensor([[3, 1], [0, 2]])), Accuracy(torch.tensor([[3, 1], [0, 2]]), votes=10)
    assert voted.describe() == "voted accuracy (mean of 10) 83.33% (5/6)"
    assert voted.metrics() == {**plain.metrics(), "votes": 10}
    assert voted.table() == f"voted: mean of the logits over 10 draws of each cloud\n{plain.table()}"
    assert voted.to_json()["votes"] == 10


def test_names_are_those_of_the_clouds_and_one_for_each_class() -> None:
    assert evaluate_classifier(Answers(), clouds_that_say(ANSWERS, LABELS), EvalSettings(2)).class_names == (
        "a",
        "b",
        "c",
        "d",
    )
    with pytest.raises(ValueError, match="1 class_names for 2 classes"):
        Accuracy(torch.eye(2), ("a",))


def test_a_model_with_other_classes_is_refused() -> None:
    """Cells of the confusion matrix would be counted in the wrong row."""
    clouds = Clouds(torch.zeros(2, 2, 3), None, torch.tensor([0, 1]), ("a", "b", "c"), "y", "toy")
    with pytest.raises(ValueError, match="the model has 4 classes, toy has 3"):
        evaluate_classifier(Answers(), clouds, EvalSettings(2))


def test_logits_may_be_made_otherwise() -> None:
    """`predict` gets the batch, with the clouds as stored and its number."""
    clouds = clouds_that_say(ANSWERS, LABELS, num_points=5)
    calls: list[tuple[int, int]] = []

    def predict(batch: EvalBatch) -> Tensor:
        points = batch.stored
        calls.append((batch.number, len(points)))
        assert points.shape[1:] == (5, 3)
        return nn.functional.one_hot(points[:, 0, 0].long(), 4).float()

    accuracy = evaluate_classifier(Answers(), clouds, EvalSettings(2, batch_size=3), predict=predict)
    assert accuracy.correct == 4
    assert calls == [(0, 3), (1, 3), (2, 1)]


def test_larger_clouds_are_cut_to_their_farthest_points() -> None:
    """Three corners far apart and a heap near the first: the heap has to go."""
    points = torch.rand(1, 10, 3) * 0.01
    points[0, 3], points[0, 7] = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    clouds = Clouds(points, None, torch.tensor([0]), ("a", "b", "c", "d"), "y", "toy")
    model = Answers()
    evaluate_classifier(model, clouds, EvalSettings(3, normalize=False))
    assert sorted(model.seen[0][0].norm(dim=1).round().tolist()) == [0, 1, 1]


def test_clouds_are_normalised_one_by_one_unless_told_otherwise() -> None:
    points = torch.rand(2, 5, 3) * torch.tensor([1.0, 50.0])[:, None, None]
    clouds = Clouds(points, None, torch.tensor([0, 0]), ("a", "b", "c", "d"), "y", "toy")
    model = Answers()
    evaluate_classifier(model, clouds, EvalSettings(5))
    assert model.seen[0].norm(dim=2).amax(1).tolist() == pytest.approx([1, 1])
    assert model.seen[0].mean(1).abs().max() < 1e-6


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="3 points asked of clouds of 2"):
        evaluate_classifier(Answers(), clouds_that_say(ANSWERS, LABELS), EvalSettings(3))


def test_evaluation_runs_without_gradient_in_eval_mode_and_restores_every_mode(toy_file: Path) -> None:
    model = create_model("point_mae_classifier", dim=16, depth=2, num_heads=2, encoder_width=8, num_classes=3)
    model.train()
    model.blocks.eval()  # a part that its user froze
    modes = [module.training for module in model.modules()]
    statistics = model.get_buffer("cls_head_finetune.1.running_mean").clone()
    inside: list[tuple[bool, bool]] = []
    model.norm.register_forward_hook(lambda module, _, y: inside.append((module.training, y.requires_grad)))
    evaluate_classifier(model, load_dataset("hdf5", "test", path=toy_file), EvalSettings(64))
    assert inside == [(False, False)]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.get_buffer("cls_head_finetune.1.running_mean"), statistics)


def test_the_modes_are_restored_after_an_error() -> None:
    model = Answers().train()
    with pytest.raises(ValueError, match="points asked"):
        evaluate_classifier(model, clouds_that_say(ANSWERS, LABELS), EvalSettings(3))
    assert model.training


def test_mixtures_are_measured_merged_or_routed(toy_file: Path) -> None:
    torch.manual_seed(0)
    model = create_model("point_mae_classifier", dim=16, depth=2, num_heads=2, encoder_width=8, num_classes=3)
    upcycle(model, num_experts=2, layers="all", init="independent").eval()
    test = load_dataset("hdf5", "test", path=toy_file)

    def measured(model: nn.Module, seed: int = 0) -> Tensor:
        """The logits that evaluation saw."""
        seen: list[Tensor] = []
        handle = model.cls_head_finetune.register_forward_hook(lambda module, _, logits: seen.append(logits))
        torch.manual_seed(seed)
        evaluate_classifier(model, test, EvalSettings(64))
        handle.remove()
        return torch.cat(seen)

    merged = measured(model)
    torch.testing.assert_close(measured(merge_experts(copy.deepcopy(model))), merged)
    with routed_experts(model):
        routed = measured(model, seed=1)
        assert torch.equal(measured(model, seed=1), routed)
        assert not torch.allclose(measured(model, seed=2), routed, atol=1e-4)
    assert not torch.allclose(routed, merged, atol=1e-4)
    assert torch.equal(measured(model), merged)


@pytest.mark.parametrize(("correct", "text"), [(12, "95 % interval from 75.75%"), (0, "95 % interval to 24.25%")])
def test_all_right_or_none_right_is_not_certain(correct: int, text: str) -> None:
    """Wilson's interval, as statsmodels has it: 0.7575 to 1 for 12 of 12."""
    found = Accuracy(torch.tensor([[correct, 12 - correct], [0, 0]]))
    assert f"({correct}/12, {text})" in found.table()
    assert found.standard_error == 0
