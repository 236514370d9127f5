"""The segmenters are the official ones: keys, shapes, sizes, and what they compute, written here as published."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import filled_by_rule
from torch import Tensor, nn

from pc_ewa.errors import ConfigError
from pc_ewa.models.point_bert_segmenter import PointBERTSegmenter
from pc_ewa.models.point_mae_segmenter import PointMAESegmenter
from pc_ewa.models.propagation import FeaturePropagation, GraphPropagation, interpolate
from pc_ewa.validation import check_arguments

Shapes = dict[str, tuple[int, ...]]
Segmenter = PointMAESegmenter | PointBERTSegmenter
SEGMENTERS = [PointMAESegmenter, PointBERTSegmenter]
SMALL: dict[str, Any] = {
    **{"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 4, "encoder_width": 8},
    **{"num_parts": 7, "num_categories": 3, "drop_path": 0.0, "head_dropout": 0.0},
}
POINTS = 24


def build(kind: type[Segmenter], **arguments: object) -> Segmenter:
    """A small segmenter in float64, its weights by the rule that the official figures were computed with."""
    if kind is PointBERTSegmenter:
        arguments = {"encoder_dim": 10, "levels": (16, 10), **arguments}
    return filled_by_rule(kind(**{**SMALL, **arguments}).double())


# The networks as the official code writes them: channels first, everything concatenated, every pair on its own.


def conv(x: Tensor, layer: nn.Module) -> Tensor:
    """A convolution of kernel 1 on (B, C, ...)."""
    y = torch.einsum("oi,bi...->bo...", layer.weight.flatten(1), x)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * (x.dim() - 2))


def batch_norm(x: Tensor, layer: nn.Module, training: bool) -> Tensor:
    """On (B, C, N); the running statistics are left alone."""
    mean, variance = layer.running_mean, layer.running_var
    if training:
        mean, variance = x.mean((0, 2)), x.var((0, 2), correction=0)
    x = (x - mean[:, None]) / (variance[:, None] + layer.eps).sqrt()
    return x * layer.weight[:, None] + layer.bias[:, None]


def group_norm(x: Tensor, layer: nn.Module) -> Tensor:
    """On (B, C, N, k), 4 groups of channels."""
    parts = []
    for part in x.chunk(4, dim=1):
        mean, variance = part.mean((1, 2, 3), keepdim=True), part.var((1, 2, 3), correction=0, keepdim=True)
        parts.append((part - mean) / (variance + layer.eps).sqrt())
    return torch.cat(parts, 1) * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (B, N, M) of (B, 3, N) and (B, 3, M)."""
    return (a[:, :, :, None] - b[:, :, None]).square().sum(1)


def propagation(
    layer: FeaturePropagation, training: bool, xyz: Tensor, sources: Tensor, own: Tensor, features: Tensor
) -> Tensor:
    distances, index = squared(xyz, sources).sort(dim=-1)
    weights = 1 / (distances[:, :, :3] + 1e-8)
    weights = weights / weights.sum(-1, keepdim=True)
    clouds = []
    for of_cloud, i, w in zip(features, index[:, :, :3], weights, strict=True):
        clouds.append((of_cloud[:, i] * w).sum(-1))
    x = torch.cat([own, torch.stack(clouds)], dim=1)
    for convolution, norm in zip(layer.mlp_convs, layer.mlp_bns, strict=True):
        x = batch_norm(conv(x, convolution), norm, training).relu()
    return x


def graph_layer(layer: nn.Sequential, xyz_q: Tensor, x_q: Tensor, xyz_k: Tensor, x_k: Tensor) -> Tensor:
    index = squared(xyz_q, xyz_k).argsort(dim=-1)[:, :, :4]
    near = torch.stack([of_cloud[:, i] for of_cloud, i in zip(x_k, index, strict=True)])
    own = x_q[..., None].expand_as(near)
    pairs = conv(torch.cat([near - own, own], dim=1), layer[0])
    return F.leaky_relu(group_norm(pairs, layer[1]), 0.2).max(-1).values


def graph(layer: GraphPropagation, xyz: Tensor, x: Tensor, xyz_q: Tensor, x_q: Tensor) -> Tensor:
    x_q = graph_layer(layer.layer1, xyz_q, x_q, xyz, x)
    return graph_layer(layer.layer2, xyz_q, x_q, xyz_q, x_q)


def farthest(points: Tensor, count: int) -> Tensor:
    """Points (B, 3, count) of (B, N, 3), each the farthest from those before it."""
    clouds = []
    for cloud in points:
        chosen, nearest = [0], (cloud - cloud[0]).norm(dim=1)
        while len(chosen) < count:
            chosen.append(int(nearest.argmax()))
            nearest = nearest.minimum((cloud - cloud[chosen[-1]]).norm(dim=1))
        clouds.append(cloud[chosen])
    return torch.stack(clouds).transpose(1, 2)


def tokens_of(model: Segmenter, points: Tensor, centers: Tensor) -> Tensor:
    """Tokens of patches cut by hand; the patch encoder has tests of its own."""
    index = squared(centers, points.transpose(1, 2)).argsort(dim=-1)[:, :, : model.group_size]
    groups = torch.stack([cloud[i] for cloud, i in zip(points, index, strict=True)])
    return model.encoder(groups - centers.transpose(1, 2)[:, :, None])


def after_three_depths(model: Segmenter, x: Tensor, position: Tensor) -> list[Tensor]:
    features, depth = [], len(model.blocks.blocks)
    for i, block in enumerate(model.blocks.blocks, start=1):
        x = block(x + position)
        if i in (depth // 3, 2 * depth // 3, depth):
            features.append(model.norm(x).transpose(1, 2))
    return features


def official_point_mae(model: PointMAESegmenter, points: Tensor, categories: Tensor) -> Tensor:
    count, training, xyz = points.shape[1], model.training, points.transpose(1, 2)
    center = farthest(points, model.num_groups)
    features = after_three_depths(model, tokens_of(model, points, center), model.pos_embed(center.transpose(1, 2)))
    x = torch.cat(features, dim=1)
    convolution, norm, _ = model.label_conv
    label = conv(F.one_hot(categories, model.num_categories)[:, :, None].double(), convolution)
    label = F.leaky_relu(batch_norm(label, norm, training), 0.2)
    whole = torch.cat([x.max(2, keepdim=True).values, x.mean(2, keepdim=True), label], dim=1).repeat(1, 1, count)
    x = torch.cat([propagation(model.propagation_0, training, xyz, center, xyz, x), whole], dim=1)
    x = batch_norm(conv(x, model.convs1), model.bns1, training).relu()
    x = batch_norm(conv(x, model.convs2), model.bns2, training).relu()
    return F.log_softmax(conv(x, model.convs3), dim=1).permute(0, 2, 1)


def official_point_bert(model: PointBERTSegmenter, points: Tensor, categories: Tensor) -> Tensor:
    batch, count, _ = points.shape
    training, xyz = model.training, points.transpose(1, 2)
    center = farthest(points, model.num_groups)
    x = model.reduce_dim(tokens_of(model, points, center))
    x = torch.cat([model.cls_token.expand(batch, -1, -1), x], dim=1)
    position = torch.cat([model.cls_pos.expand(batch, -1, -1), model.pos_embed(center.transpose(1, 2))], dim=1)
    first, second, f3 = (x[:, :, 1:] for x in after_three_depths(model, x, position))
    xyz1, xyz2 = farthest(points, model.levels[0]), farthest(points, model.levels[1])
    f2 = propagation(model.propagation_2, training, xyz2, center, xyz2, second)
    f1 = propagation(model.propagation_1, training, xyz1, center, xyz1, first)
    f2 = graph(model.dgcnn_pro_2, center, f3, xyz2, f2)
    f1 = graph(model.dgcnn_pro_1, xyz2, f2, xyz1, f1)
    kinds = F.one_hot(categories, model.num_categories)[:, :, None].repeat(1, 1, count).double()
    f0 = propagation(model.propagation_0, training, xyz, xyz1, torch.cat([kinds, xyz], dim=1), f1)
    x = batch_norm(conv(f0, model.conv1), model.bn1, training).relu()
    return F.log_softmax(conv(x, model.conv2), dim=1).permute(0, 2, 1)


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


def official_shapes(kind: type[Segmenter]) -> Shapes:
    """Keys and shapes of the official checkpoints, in their order."""
    shapes: Shapes = {}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def batch_norm(name: str, width: int) -> None:
        layer(name, width)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def feature_propagation(name: str, *widths: int) -> None:
        for i in (0, 1):
            layer(f"{name}.mlp_convs.{i}", widths[i + 1], widths[i], 1)
        for i in (0, 1):
            batch_norm(f"{name}.mlp_bns.{i}", widths[i + 1])

    if bert := kind is PointBERTSegmenter:
        shapes["cls_token"] = shapes["cls_pos"] = (1, 1, 384)
    layer("encoder.first_conv.0", 128, 3, 1)
    batch_norm("encoder.first_conv.1", 128)
    layer("encoder.first_conv.3", 256, 128, 1)
    layer("encoder.second_conv.0", 512, 512, 1)
    batch_norm("encoder.second_conv.1", 512)
    layer("encoder.second_conv.3", 256 if bert else 384, 512, 1)
    if bert:
        layer("reduce_dim", 384, 256)
    layer("pos_embed.0", 128, 3)
    layer("pos_embed.2", 384, 128)
    for i in range(12):
        block = f"blocks.blocks.{i}"
        layer(f"{block}.norm1", 384)
        layer(f"{block}.norm2", 384)
        layer(f"{block}.mlp.fc1", 1536, 384)
        layer(f"{block}.mlp.fc2", 384, 1536)
        layer(f"{block}.attn.qkv", 1152, 384, bias=False)
        layer(f"{block}.attn.proj", 384, 384)
    layer("norm", 384)
    if bert:
        feature_propagation("propagation_2", 387, 1536, 384)
        feature_propagation("propagation_1", 387, 1536, 384)
        feature_propagation("propagation_0", 403, 1536, 384)
        for name in ("dgcnn_pro_1", "dgcnn_pro_2"):
            layer(f"{name}.layer1.0", 512, 768, 1, 1, bias=False)
            layer(f"{name}.layer1.1", 512)
            layer(f"{name}.layer2.0", 384, 1024, 1, 1, bias=False)
            layer(f"{name}.layer2.1", 384)
        layer("conv1", 128, 384, 1)
        batch_norm("bn1", 128)
        layer("conv2", 50, 128, 1)
        return shapes
    layer("label_conv.0", 64, 16, 1, bias=False)
    batch_norm("label_conv.1", 64)
    feature_propagation("propagation_0", 1155, 1536, 1024)
    layer("convs1", 512, 3392, 1)
    layer("convs2", 256, 512, 1)
    layer("convs3", 50, 256, 1)
    batch_norm("bns1", 512)
    batch_norm("bns2", 256)
    return shapes


@pytest.mark.parametrize(("kind", "parameters"), [(PointMAESegmenter, 27_063_730), (PointBERTSegmenter, 27_085_874)])
def test_keys_shapes_their_order_and_the_size_are_official(kind: type[Segmenter], parameters: int) -> None:
    model = kind()
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == list(
        official_shapes(kind).items()
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.stages == (3, 7, 11)


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
        ({"depth": 2}, "depth=2; a segmenter takes features after three blocks: it must be at least 3"),
        ({"num_parts": 0}, "num_parts=0; it must be at least 1"),
        ({"num_categories": 0}, "num_categories=0"),
        ({"num_heads": 5}, "num_heads=5 does not divide dim=12"),
        ({"mlp_ratio": 0.01}, "mlp_ratio=0.01 with dim=12"),
        ({"head_dropout": 1.0}, "head_dropout=1.0"),
    ],
)
def test_impossible_sizes_are_refused(kind: type[Segmenter], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 6}, "dim=6; .*multiple of 4"),
        ({"num_groups": 3}, "num_groups=3; every point of a level has 4 neighbours"),
        ({"levels": (16, 3)}, r"levels=\(16, 3\); every point of a level has 4 neighbours"),
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
    with pytest.raises(ValueError, match=r"clouds of 19 points, levels=\(10, 20\); give at least 20 points"):
        model(clouds(0, 2, 19).double(), torch.tensor([0, 1]))
    assert model(clouds(0, 2, 20).double(), torch.tensor([0, 1])).shape == (2, 20, 7)


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (torch.tensor([0, 3]), "category 3; the model has 3: choose 0 to 2"),
        (torch.tensor([-1, 0]), "category -1; the model has 3"),
        (torch.tensor([0]), "expected one for each of the 2 clouds, int64"),
        (torch.tensor([0.0, 1.0]), "float32; expected one for each"),
    ],
)
def test_wrong_categories_are_refused(
    kind: type[Segmenter], categories: Tensor, message: str, clouds: Callable[..., Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind)(clouds(0, 2, POINTS).double(), categories)
