"""The segmenters are the official ones: outputs, gradients and statistics; refused arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from official_segmenters import Segmenter, official_point_bert, official_point_mae
from parity import filled_by_rule
from torch import Tensor

from pc_ewa.errors import ConfigError
from pc_ewa.models.point_bert_segmenter import PointBERTSegmenter
from pc_ewa.models.point_mae_segmenter import PointMAESegmenter
from pc_ewa.models.propagation import interpolate
from pc_ewa.validation import check_arguments

SEGMENTERS = [PointMAESegmenter, PointBERTSegmenter]
SMALL: dict[str, Any] = {
    **{"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 4, "encoder_width": 8},
    **{"num_parts": 7, "num_categories": 3, "drop_path": 0.0, "head_dropout": 0.0},
}
POINTS = 24


def build(kind: type[Segmenter], **arguments: object) -> Segmenter:
    """A small segmenter in float64, its weights by the rule that the official numbers were computed with."""
    if kind is PointBERTSegmenter:
        arguments = {"encoder_dim": 10, "levels": (16, 10), **arguments}
    return filled_by_rule(kind(**{**SMALL, **arguments}).double())


OFFICIAL = {PointMAESegmenter: official_point_mae, PointBERTSegmenter: official_point_bert}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"depth": 4}], ids=["3 blocks", "4 blocks"])
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_segmenters_compute_what_the_official_ones_do_forward_and_backward(
    kind: type[Segmenter], arguments: dict[str, int], training: bool, clouds: Callable[..., Tensor]
) -> None:
    model = build(kind, **arguments).train(training)
    points, categories = clouds(0, 2, POINTS).double(), torch.tensor([2, 0])
    weight = torch.randn(2, POINTS, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for forward in (model, lambda x, c: OFFICIAL[kind](model, x, c)):
        model.zero_grad()
        x = points.clone().requires_grad_()
        scores = forward(x, categories)
        (scores * weight).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append({"scores": scores.detach(), "points": x.grad, **gradients})
    ours, official = results
    assert official["points"].abs().max() > 0.1
    for name, expected in official.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_single_precision_gives_the_same(clouds: Callable[..., Tensor]) -> None:
    points, categories = clouds(1, 2, POINTS), torch.tensor([1, 2])
    for kind in SEGMENTERS:
        model = build(kind).eval()
        expected = model(points.double(), categories)
        found = model.float()(points, categories)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_batch_norms_keep_running_statistics_of_all_points(
    kind: type[Segmenter], clouds: Callable[..., Tensor]
) -> None:
    """Those of the last norm: the plain ones of what it is given."""
    model = build(kind).train()
    norm = model.bns2 if kind is PointMAESegmenter else model.bn1
    before, seen = norm.running_var.clone(), []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    model(clouds(0, 3, POINTS).double(), torch.tensor([0, 1, 2]))
    assert seen[0].shape[0] == 3 * POINTS
    torch.testing.assert_close(norm.running_var, 0.9 * before + 0.1 * seen[0].var(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_features_are_taken_after_one_two_and_three_thirds_of_the_blocks(kind: type[Segmenter]) -> None:
    with torch.device("meta"):
        assert kind().stages == (3, 7, 11)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_what_pretraining_lacks_is_the_head_and_no_more(kind: type[Segmenter]) -> None:
    shared = {key for key in build(kind).state_dict() if not key.startswith(kind.head_keys)}
    assert {key.split(".")[0] for key in shared} - {"reduce_dim"} == {"encoder", "pos_embed", "blocks", "norm"}


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_every_parameter_gets_a_gradient(kind: type[Segmenter], clouds: Callable[..., Tensor]) -> None:
    model = build(kind, drop_path=0.1, head_dropout=0.5).train()
    torch.manual_seed(0)
    scores = model(clouds(0, 4, POINTS).double(), torch.tensor([0, 1, 2, 0]))
    F.nll_loss(scores.flatten(0, 1), torch.arange(4 * POINTS) % 7).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_probabilities_sum_to_one_and_evaluation_repeats_itself(
    kind: type[Segmenter], clouds: Callable[..., Tensor]
) -> None:
    model, points, categories = build(kind, head_dropout=0.5).eval(), clouds(3, 2, 40).double(), torch.tensor([1, 1])
    scores = model(points, categories)
    assert scores.shape == (2, 40, 7)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 40, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(model(points, categories), scores)
    assert not torch.allclose(model.train()(points, categories), model(points, categories))  # dropout
    model.eval()
    assert not torch.allclose(model(points, torch.tensor([1, 2]))[1], scores[1]), "the category matters"


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_points_keep_their_scores_wherever_they_stand(kind: type[Segmenter], clouds: Callable[..., Tensor]) -> None:
    """But the first one, where sampling starts."""
    model, points = build(kind).eval(), clouds(0, 2, 40).double()
    order, categories = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)]), torch.tensor([0, 2])
    found = model(points[:, order], categories)
    torch.testing.assert_close(found, model(points, categories)[:, order], rtol=0, atol=1e-11)


def test_a_point_on_a_source_takes_its_features_and_others_lie_between() -> None:
    sources = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]]], dtype=torch.float64)
    features = torch.tensor([[[0.0], [1], [2], [1000]]], dtype=torch.float64)
    queries = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0]]], dtype=torch.float64)
    found = interpolate(queries, sources, features).flatten().tolist()
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[1] == pytest.approx(1)  # as far from all three
    few = interpolate(queries, sources[:, :1], features[:, :1] + 5)
    assert few.flatten().tolist() == [5, 5]


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_half_precision_is_near(kind: type[Segmenter], clouds: Callable[..., Tensor]) -> None:
    model, points, categories = build(kind).float().eval(), clouds(0, 2, POINTS), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(points, categories)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.exp().sum(-1), torch.ones(2, POINTS), rtol=0, atol=1e-5)
    assert (rough - model(points, categories)).abs().max() < 0.1


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 2}, "depth=2.* 3"),
        ({"num_parts": 0}, "num_parts=0"),
        ({"num_categories": 0}, "num_categories=0"),
        ({"num_heads": 5}, "num_heads=5 .*dim=12"),
        ({"mlp_ratio": 0.01}, "mlp_ratio=0.01 .*dim=12"),
        ({"head_dropout": 1.0}, "head_dropout=1.0"),
    ],
)
def test_impossible_sizes_are_refused(kind: type[Segmenter], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 6}, "dim=6.* 4"),
        ({"num_groups": 3}, "num_groups=3.* 4"),
        ({"levels": (16, 3)}, r"levels=\(16, 3\).* 4"),
        ({"encoder_dim": 0}, "encoder_dim=0"),
    ],
)
def test_sizes_that_the_graph_of_point_bert_cannot_have_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PointBERTSegmenter, **arguments)


def test_levels_come_from_a_list_of_two_in_a_configuration() -> None:
    assert check_arguments("model", PointBERTSegmenter, {"levels": [64, 32]})["levels"] == (64, 32)
    with pytest.raises(ConfigError, match="levels"):
        check_arguments("model", PointBERTSegmenter, {"levels": [64]})


def test_clouds_smaller_than_a_level_are_refused(clouds: Callable[..., Tensor]) -> None:
    model = build(PointBERTSegmenter, levels=(10, 20))
    with pytest.raises(ValueError, match=r" 19 .*levels=\(10, 20\).* 20"):
        model(clouds(0, 2, 19).double(), torch.tensor([0, 1]))
    assert model(clouds(0, 2, 20).double(), torch.tensor([0, 1])).shape == (2, 20, 7)


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (torch.tensor([0, 3]), "category 3.* 0 to 2"),
        (torch.tensor([-1, 0]), "category -1.* 3"),
        (torch.tensor([0]), "the 2 clouds, int64"),
        (torch.tensor([0.0, 1.0]), "float32"),
    ],
)
def test_wrong_categories_are_refused(
    kind: type[Segmenter], categories: Tensor, message: str, clouds: Callable[..., Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind)(clouds(0, 2, POINTS).double(), categories)
