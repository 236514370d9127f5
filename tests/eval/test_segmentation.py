"""The IoU of parts against a slow count as published, by hand, and what evaluation does to clouds and to the model."""

import datetime
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import DataError
from pc_ewa.eval.segmentation import Segmentation, evaluate_segmenter, predict_parts, shape_ious
from pc_ewa.eval.settings import EvalSettings
from pc_ewa.models.point_mae_segmenter import PointMAESegmenter

PARTS_OF = [[0, 1], [2, 3, 4], [5]]
NAMES = ("a", "b", "c")


def published(scores: np.ndarray, truth: np.ndarray, parts_of: list[list[int]]) -> tuple[list[list[float]], float]:
    """IoUs of shapes by category, and the share of points right, as the official loop counts them."""
    category_of = {part: category for category, parts in enumerate(parts_of) for part in parts}
    ious: list[list[float]] = [[] for _ in parts_of]
    right = seen = 0
    for scores_of_shape, truth_of_shape in zip(scores, truth, strict=True):
        category = category_of[truth_of_shape[0]]
        parts = parts_of[category]
        predicted = []
        for point in scores_of_shape:
            best = parts[0]
            for part in parts:
                if point[part] > point[best]:
                    best = part
            predicted.append(best)
        of_parts = []
        for part in parts:
            both = sum(p == part and t == part for p, t in zip(predicted, truth_of_shape, strict=True))
            either = sum(p == part or t == part for p, t in zip(predicted, truth_of_shape, strict=True))
            of_parts.append(both / either if either else 1.0)
        ious[category].append(sum(of_parts) / len(of_parts))
        right += sum(p == t for p, t in zip(predicted, truth_of_shape, strict=True))
        seen += len(predicted)
    return ious, right / seen


class Answers(nn.Module):
    """Answers what was written for each cloud; the first coordinate of its first point says which one it is."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scores = scores
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        self.seen.append((points, categories))
        return self.scores[points[:, 0, 0].long()]


def clouds_with(parts: Tensor, categories: list[int]) -> Clouds:
    """Clouds whose first coordinate is their position."""
    points = torch.arange(len(parts))[:, None, None].expand(-1, parts.shape[1], 3).float().contiguous()
    return Clouds(points, None, torch.tensor(categories), NAMES, "y", "toy", parts=parts.to(torch.uint8))


def drawn(seed: int, categories: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Scores and truth of shapes; some parts of a category are in neither."""
    random = np.random.RandomState(seed)
    truth = [random.choice(PARTS_OF[c][: random.randint(1, len(PARTS_OF[c]) + 1)], count) for c in categories]
    scores = random.standard_normal((len(categories), count, 6))
    scores[:, :, random.randint(6)] -= 9
    return torch.from_numpy(scores), torch.from_numpy(np.stack(truth))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_is_what_the_published_loop_counts(batch_size: int) -> None:
    categories = [0, 1, 1, 2, 0, 1, 1]
    for seed in range(5):
        scores, truth = drawn(seed, categories, 6)
        expected, accuracy = published(scores.numpy(), truth.numpy(), PARTS_OF)
        model, clouds = Answers(scores), clouds_with(truth, categories)
        found = evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(6, normalize=False, batch_size=batch_size))
        assert found.instance_miou == pytest.approx(sum(map(sum, expected)) / 7, abs=1e-15)
        assert found.class_miou == pytest.approx(sum(sum(ious) / len(ious) for ious in expected) / 3, abs=1e-15)
        assert found.accuracy == pytest.approx(accuracy, abs=1e-15)
        for name, ious in zip(NAMES, expected, strict=True):
            assert found.per_class[name] == (pytest.approx(sum(ious) / len(ious), abs=1e-15), len(ious))
        assert found.ious[found.categories == 1].tolist() == pytest.approx(expected[1], abs=1e-15)
        assert torch.cat([seen for _, seen in model.seen]).tolist() == categories


def test_ious_are_what_one_counts_by_hand() -> None:
    truth = torch.tensor([[0, 0, 0, 1], [2, 2, 3, 3], [2, 2, 2, 2], [5, 5, 5, 5]])
    predicted = torch.tensor([[0, 0, 1, 1], [2, 4, 3, 3], [2, 2, 2, 2], [5, 5, 5, 5]])
    # Part 0: 2 of 3, part 1: 1 of 2. Parts 2 and 3: 1 of 2 and 2 of 2; part 4 is predicted but not there. Third shape:
    # parts 3 and 4 are in neither, so they count 1.
    expected = [(2 / 3 + 1 / 2) / 2, (1 / 2 + 1 + 0) / 3, 1, 1]
    assert shape_ious(predicted, truth, torch.tensor([0, 1, 1, 2]), PARTS_OF).tolist() == pytest.approx(expected)


def test_means_and_errors_are_what_one_computes_by_hand() -> None:
    ious, categories = torch.tensor([0.5, 1.0, 0.3], dtype=torch.float64), torch.tensor([0, 0, 2])
    found = Segmentation(ious, categories, NAMES, 30, 40)
    assert found.samples == 3
    assert found.instance_miou == pytest.approx(0.6)
    assert found.class_miou == pytest.approx((0.75 + 0.3) / 2), "b has no samples"
    assert found.per_class == {"a": (0.75, 2), "c": (0.3, 1)}
    assert found.accuracy == 0.75
    assert found.standard_error == pytest.approx(math.sqrt((0.1**2 + 0.4**2 + 0.3**2) / 2 / 3))
    assert found.metrics() == {
        "instance_miou": found.instance_miou,
        "class_miou": found.class_miou,
        "accuracy": 0.75,
        "standard_error": found.standard_error,
    }
    assert found.describe() == "instance mIoU 60.00%, class mIoU 52.50%"
    assert found.table().splitlines() == [
        "instance mIoU      60.00% (3 samples, standard error 20.82%)",
        "class mIoU         52.50% (2 categories)",
        "accuracy of points 75.00% (30/40)",
        "  a    75.0% (2 samples)",
        "  b  no samples",
        "  c    30.0% (1 samples)",
    ]
    assert json.loads(json.dumps(found.to_json())) == found.metrics() | {
        **{"samples": 3, "points": 40, "points_right": 30},
        "per_class": {"a": {"miou": 0.75, "samples": 2}, "c": {"miou": 0.3, "samples": 1}},
    }


def test_a_single_shape_has_no_standard_error() -> None:
    found = Segmentation(torch.tensor([0.5]).double(), torch.tensor([0]), NAMES, 1, 1)
    assert math.isnan(found.standard_error)
    assert "standard_error" not in found.metrics()
    assert found.table().startswith("instance mIoU      50.00% (1 samples)")


shapes = st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(0, 1000), st.integers(1, 12))
def test_ious_are_fractions_one_only_for_perfect_shapes_in_any_order_of_points(
    categories: list[int], seed: int, count: int
) -> None:
    scores, truth = drawn(seed, categories, count)
    of = torch.tensor(categories)
    predicted = predict_parts(scores, of, PARTS_OF)
    assert all(p in PARTS_OF[c] for row, c in zip(predicted.tolist(), categories, strict=True) for p in row)
    assert shape_ious(truth, truth, of, PARTS_OF).tolist() == [1] * len(categories)
    ious = shape_ious(predicted, truth, of, PARTS_OF)
    assert ((ious >= 0) & (ious <= 1)).all()
    assert torch.equal(ious == 1, (predicted == truth).all(1))
    assert torch.equal(shape_ious(truth, predicted, of, PARTS_OF), ious), "truth and prediction may change places"
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shape_ious(predicted[:, order], truth[:, order], of, PARTS_OF), ious)
    flipped = shape_ious(predicted.flip(0), truth.flip(0), of.flip(0), PARTS_OF)
    assert torch.equal(flipped.flip(0), ious)


def test_parts_of_other_categories_are_never_chosen() -> None:
    scores = torch.zeros(1, 2, 6)
    scores[:, :, 5], scores[0, 0, 3], scores[0, 1, 2] = 100.0, -1.0, -0.5
    scores[0, :, 4], scores[0, 0, 2] = -7.0, -2.0
    scores[0, 1, 3] = -0.6
    assert predict_parts(scores, torch.tensor([1]), PARTS_OF).tolist() == [[3, 2]]


def test_larger_clouds_are_normalised_and_cut_to_their_farthest_points_with_their_parts() -> None:
    """Three corners far apart and a heap near the first: the heap has to go, and its part."""
    points = torch.rand(1, 10, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    points[0, 3], points[0, 7] = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    parts = torch.full((1, 10), 4, dtype=torch.uint8)
    parts[0, 0], parts[0, 3], parts[0, 7] = 2, 3, 3

    class Knows(Answers):
        def forward(self, points: Tensor, categories: Tensor) -> Tensor:
            self.seen.append((points, categories))
            corner = points.norm(dim=-1) > 0.9
            return nn.functional.one_hot(torch.where(corner, 3, 2), 6).float()

    model, clouds = Knows(torch.zeros(1)), Clouds(points, None, torch.tensor([1]), NAMES, "y", "toy", parts=parts)
    found = evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(3, normalize=False))
    assert sorted(model.seen[0][0][0].norm(dim=1).round().tolist()) == [0, 1, 1]
    assert (found.instance_miou, found.accuracy, found.points) == (1, 1, 3)
    evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(10))
    assert model.seen[1][0].norm(dim=2).max().item() == pytest.approx(1)
    assert model.seen[1][0].mean(1).abs().max() < 1e-6


def test_a_network_is_measured_without_gradient_in_eval_mode_and_every_mode_restored() -> None:
    small = {"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 4, "group_size": 4, "encoder_width": 8}
    model = PointMAESegmenter(num_parts=6, num_categories=3, **small).train()
    model.blocks.eval()  # a part that its user froze
    modes = [module.training for module in model.modules()]
    statistics = model.bns1.running_mean.clone()
    inside: list[tuple[bool, bool]] = []
    model.norm.register_forward_hook(lambda module, _, y: inside.append((module.training, y.requires_grad)))
    _, parts = drawn(0, [0, 1, 2], 16)
    points = torch.rand(3, 16, 3, generator=torch.Generator().manual_seed(0))
    clouds = Clouds(points, None, torch.tensor([0, 1, 2]), NAMES, "y", "toy", parts=parts.to(torch.uint8))
    found = evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(12))
    assert set(inside) == {(False, False)}
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.bns1.running_mean, statistics)
    assert torch.equal(evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(12, batch_size=2)).ious, found.ious)
    rough = evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(12, precision="bf16"))
    assert (rough.samples, rough.points, rough.per_class["c"]) == (3, 36, (1.0, 1))


def test_what_does_not_fit_is_refused_and_the_modes_are_restored() -> None:
    scores, truth = drawn(0, [0, 1], 4)
    model, clouds = Answers(scores).train(), clouds_with(truth, [0, 1])
    with pytest.raises(ValueError, match="5 points asked of clouds of 4"):
        evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(5, normalize=False))
    assert model.training
    with pytest.raises(ValueError, match="parts of 2 categories for 3 of toy"):
        evaluate_segmenter(model, clouds, PARTS_OF[:2], EvalSettings(4))
    with pytest.raises(ValueError, match="category 2 has part 6; the parts known are 0 to 5"):
        evaluate_segmenter(model, clouds, [*PARTS_OF[:2], [6]], EvalSettings(4, normalize=False))
    with pytest.raises(ValueError, match="category 1 has no parts"):
        evaluate_segmenter(model, clouds, [[0], [], [1]], EvalSettings(4, normalize=False))
    with pytest.raises(DataError, match="toy has no parts"):
        evaluate_segmenter(
            model, Clouds(clouds.points, None, clouds.labels, NAMES, "y", "toy"), PARTS_OF, EvalSettings(4)
        )
    with pytest.raises(ValueError, match=r"predicted \(2, 4\), truth \(2, 3\)"):
        shape_ious(truth, truth[:, :3], torch.tensor([0, 1]), PARTS_OF)


WORKER = """
import sys, torch, torch.distributed as dist
from pc_ewa.data import Clouds
from pc_ewa.eval import EvalSettings, evaluate_segmenter
folder = sys.argv[1]
scores, points, parts, labels, names, parts_of = torch.load(f"{folder}/data")
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=1, world_size=2)
model, calls = torch.nn.Linear(1, 1), []
model.forward = lambda x, categories: calls.append(x) or scores[x[:, 0, 0].long()]
clouds = Clouds(points, None, labels, names, "y", "toy", parts=parts)
found = evaluate_segmenter(model, clouds, parts_of, EvalSettings(6, normalize=False, batch_size=2))
dist.destroy_process_group()
torch.save([found.ious, found.points_right, found.points, len(calls)], f"{folder}/found")
"""


def test_two_processes_measure_each_shape_once(tmp_path: Path, one_thread_environment: dict[str, str]) -> None:
    """Five samples, so that this process has three and another two; both get the result of one process."""
    scores, truth = drawn(3, [0, 1, 2, 1, 0], 6)
    model, clouds = Answers(scores), clouds_with(truth, [0, 1, 2, 1, 0])
    expected = evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(6, normalize=False))
    torch.save([scores, clouds.points, clouds.parts, clouds.labels, NAMES, PARTS_OF], tmp_path / "data")
    other = subprocess.Popen([sys.executable, "-c", WORKER, tmp_path], env=one_thread_environment)
    wait = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=2, timeout=wait)
    try:
        mine = evaluate_segmenter(model, clouds, PARTS_OF, EvalSettings(6, normalize=False, batch_size=2))
    finally:
        dist.destroy_process_group()
    assert other.wait() == 0
    assert [categories.tolist() for _, categories in model.seen[1:]] == [[0, 1], [0]]  # the first and the third batch
    ious, right, points, calls = torch.load(tmp_path / "found")
    assert torch.equal(ious, expected.ious)
    assert torch.equal(mine.ious, expected.ious)
    assert right == mine.points_right == expected.points_right
    assert (points, mine.points, calls) == (30, 30, 1)
