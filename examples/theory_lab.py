"""Tools of theory.py: the small ViT of any_vit.py, its training, and the arithmetic on its experts."""

import copy
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from any_vit import SIZE
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import pc_ewa
from pc_ewa.ewa import ExpertFFN, expert_layers, routed_experts

EXPERTS, BETA, LR = 4, 0.3, 4e-3
Data = dict[str, tuple[Tensor, Tensor]]
Init = Literal["copy", "independent"]
Schedule = Literal["constant", "linear", "cosine"]


class Curves(NamedTuple):
    """One training: per step the spread and the learning rate, losses at some steps, and two measures of the updates.

    `agreement` is ‖mean update of the experts‖ / mean ‖update‖, `memory` how far the experts are from their mean over
    how far the latest update took them from it.
    """

    spread: list[float]
    lr: list[float]
    agreement: list[float]
    memory: list[float]
    at: list[int]
    merged: list[float]
    unmerged: list[float]


def train(
    data: Data,
    steps: int,
    share_rate: float | None,
    kind: Schedule = "linear",
    init: Init = "copy",
    anneal: bool = True,
) -> Curves:
    """AdamW with the recipe of any_vit.py; `anneal=False` holds the learning rate after its warm-up."""
    model = build(0, 0 if share_rate is None else EXPERTS, init)
    averager = None if share_rate is None else pc_ewa.ExpertAverager(model, share_rate, kind, steps)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.1, cycle_momentum=False)
    curves = Curves([], [], [], [], [], [], [])
    for t, (images, labels) in enumerate(batches(data, steps)):
        curves.lr.append(optimizer.param_groups[0]["lr"])
        before = flat(model)
        step(model, optimizer, images, labels)
        if averager:
            update = flat(model) - before
            curves.agreement.append((update.mean(0).norm() / update.norm(dim=1).mean()).item())
            averager.step()
            if parted := deviation(update):  # a rate of nearly 0 changes no weight in single precision
                curves.memory.append(deviation(flat(model)) / parted)
            curves.spread.append(sum(layer.spread for layer in averager.statistics().values()) / 2)
        if anneal or t < steps // 10:
            schedule.step()
        if (t + 1) % max(3, steps // 27) == 0:
            curves.at.append(t + 1)
            model.eval()
            curves.merged.append(loss(model, *data["val"]).item())
            draws = 20 if t + 1 == steps and averager else 1  # the last figure is read off, the others are a curve
            with routed_experts(model):
                curves.unmerged.append(sum(loss(model, *data["val"]).item() for _ in range(draws)) / draws)
            model.train()
    return curves


def build(seed: int, experts: int = 0, init: Init = "copy", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the ViT of any_vit.py, with experts in every second FFN if `experts` is above 0."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(**SIZE)).to(dtype).train()
    return pc_ewa.upcycle(model, experts, "every-2", init) if experts else model


def stacks(model: nn.Module) -> Iterator[Tensor]:
    """Yield the stacked parameters (N, ...) of all mixtures."""
    for layer in expert_layers(model).values():
        yield from layer.parameters()


@torch.no_grad()
def flat(model: nn.Module) -> Tensor:
    """Return a copy of all weights of each expert as one vector, (N, weights)."""
    found = [stack.flatten(1) for stack in stacks(model)]
    return torch.cat(found, 1) if found else torch.empty(0)


def deviation(experts: Tensor) -> float:
    """Compute the norm of the deviations from the mean."""
    return (experts - experts.mean(0)).norm().item()


def shrinkage(layer: ExpertFFN, share_rate: float, every: int) -> float:
    """Deviations after one averaging for `every` steps, over those before; the layer stays as it is."""
    layer = copy.deepcopy(layer)
    averager = pc_ewa.ExpertAverager(layer, share_rate, "constant", every=every)
    before = deviation(flat(layer))
    for _ in range(every):
        averager.step()
    return deviation(flat(layer)) / before


def one_mixture(experts: int) -> ExpertFFN:
    """Build independent experts of one FFN in float64."""
    return next(iter(expert_layers(build(0, experts, "independent", torch.float64)).values()))


def sgd(model: nn.Module, lr: float, momentum: float) -> torch.optim.SGD:
    """SGD that gives experts, each of which sees 1/N of the tokens, N times the learning rate."""
    own = {id(stack) for stack in stacks(model)}
    groups = [{"params": [p for p in model.parameters() if id(p) not in own]}]
    groups += [{"params": [*stacks(model)], "lr": lr * EXPERTS}] if own else []
    return torch.optim.SGD(groups, lr, momentum)


def batches(data: Data, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 60 training images, in the same order always."""
    (images, labels), order = data["train"], torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randperm(len(labels), generator=order)[:60]
        yield images[index], labels[index]


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy."""
    return nn.functional.cross_entropy(model(pixel_values=images).logits, labels)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Take one optimizer step. Returns the loss before it."""
    optimizer.zero_grad()
    value = loss(model, images, labels)
    value.backward()
    optimizer.step()
    return value.item()


def farthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest difference between two states."""
    return max((first[key] - second[key]).abs().max().item() for key in first)
