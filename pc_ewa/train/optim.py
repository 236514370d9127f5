"""AdamW with the decay groups of the field, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from pc_ewa.config import Train
from pc_ewa.errors import ConfigError
from pc_ewa.ewa.find_ffns import find_ffns, select_layers
from pc_ewa.ewa.sites import ffn_at


def create_optimizer(model: nn.Module, train: Train, decay_cls_pos: bool = False) -> torch.optim.AdamW:
    """Create an AdamW that decays matrices only: not norms, biases, tokens or `cls_pos`.

    `decay_cls_pos` decays `cls_pos` too, as the official code does by accident. The FFNs of `train.slow_ffn` have
    separate groups with a "factor", by which the loop multiplies the learning rate.

    Raises:
        ConfigError: a model without the FFNs that `train.slow_ffn` names.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    slow = _slow_parameters(model, train)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) in slow, not is_decayed(name, parameter, decay_cls_pos))
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": groups[slowed, exempt], "weight_decay": 0.0 if exempt else train.weight_decay}
        | ({"factor": train.slow_ffn.factor} if slowed and train.slow_ffn else {})
        for slowed, exempt in sorted(groups)
    ]
    return torch.optim.AdamW(settings, lr=train.lr, fused=True)


def _slow_parameters(model: nn.Module, train: Train) -> set[int]:
    """Return the ids of the parameters in the FFNs of `train.slow_ffn`."""
    if train.slow_ffn is None:
        return set()
    try:
        sites = find_ffns(model)
        chosen = select_layers(train.slow_ffn.layers, len(sites))
    except ValueError as error:
        raise ConfigError(f"train.slow_ffn: {error}") from None
    return {id(parameter) for index in chosen for parameter in ffn_at(sites[index]).parameters()}


def is_decayed(name: str, parameter: nn.Parameter, decay_cls_pos: bool = False) -> bool:
    """Return True if weight decay applies to the parameter of this name."""
    # The stacked biases of experts are 2-D, so that the number of axes alone would not exempt them.
    leaf = name.rpartition(".")[2]
    return parameter.dim() > 1 and leaf != "bias" and "token" not in leaf and (leaf != "cls_pos" or decay_cls_pos)


def learning_rate(step: int, total_steps: int, train: Train) -> float:
    """Return the learning rate of a step, from 0: linear warm-up from `min_lr`, then half a cosine back to it.

    The rate is that of the current step. The official runs lag one epoch behind their schedule.
    """
    warmup = round(train.warmup * total_steps)
    if step < warmup:
        return train.min_lr + (train.lr - train.min_lr) * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup - 1)
    return train.min_lr + (train.lr - train.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def official_learning_rate(step: int, steps_per_epoch: int, train: Train) -> float:
    """Return the learning rate of the official code: that of the epoch before, constant within an epoch.

    Its scheduler steps after each epoch, so that the first two epochs both have the first rate. As in timm with
    `warmup_prefix=False`, the cosine is computed from epoch 0 and takes over when warm-up ends.
    """
    epoch, warmup = max(0, step // steps_per_epoch - 1), round(train.warmup * train.epochs)
    if epoch < warmup:
        return train.min_lr + epoch * (train.lr - train.min_lr) / warmup
    if epoch >= train.epochs:
        return train.min_lr
    return train.min_lr + (train.lr - train.min_lr) * (1 + math.cos(math.pi * epoch / train.epochs)) / 2
