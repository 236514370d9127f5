"""The networks for part segmentation as the official code writes them: channels first, everything concatenated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.models.point_bert_segmenter import PointBERTSegmenter
from pc_ewa.models.point_mae_segmenter import PointMAESegmenter
from pc_ewa.models.propagation import FeaturePropagation, GraphPropagation

Segmenter = PointMAESegmenter | PointBERTSegmenter


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
