"""Random uniform partition (RUP): deals tokens to experts at random, in equal groups, with no gate and no loss."""

from typing import NamedTuple

import torch
from torch import Tensor


class Partition(NamedTuple):
    """The route of each token to an expert.

    With B rows of T tokens dealt to N experts, S = ceil(T / N) slots per expert and row:
    `tokens` (B, N, S) is the token in each slot, T where the slot stays empty;
    `slots` (B, T) is the slot of each token in the flattened (N, S) grid.
    """

    tokens: Tensor
    slots: Tensor


def uniform_partition(rows: int, tokens: int, num_experts: int, device: torch.device | None = None) -> Partition:
    """Deal the tokens of each row at random to the experts (EWA, section "random uniform partition").

    Group sizes differ by at most one; when the experts do not divide the tokens, chance decides who gets one more.
    Draws from torch's default generator, whose state activation checkpointing saves and restores.
    """
    share, rest = tokens // num_experts, tokens % num_experts  # torch.compile knows no divmod of sizes that change
    order = torch.rand(rows, tokens, device=device).argsort(1)
    slotted = order[:, : share * num_experts].view(rows, num_experts, share)
    if rest > 0:
        lucky = torch.rand(rows, num_experts, device=device).argsort(1)[:, :rest]
        last = order.new_full((rows, num_experts), tokens).scatter_(1, lucky, order[:, -rest:])
        slotted = torch.cat([slotted, last[:, :, None]], dim=2)
    taken = slotted.flatten(1)
    grid = torch.arange(taken.shape[1], device=device).expand(rows, -1)
    # One column more than there are tokens takes what the empty slots write.
    slots = order.new_empty(rows, tokens + 1).scatter_(1, taken, grid)[:, :tokens]
    return Partition(slotted, slots)


def dispatch(x: Tensor, partition: Partition) -> Tensor:
    """Gather tokens (B, T, C) into the experts' groups (N, B·S, C); empty slots repeat some token."""
    rows, tokens, channels = x.shape
    flat = partition.tokens.clamp(max=tokens - 1) + _row_offsets(rows, tokens, x.device)
    groups = flat.transpose(0, 1).reshape(-1)
    return x.reshape(rows * tokens, channels).index_select(0, groups).view(partition.tokens.shape[1], -1, channels)


def combine(groups: Tensor, partition: Partition) -> Tensor:
    """Put the experts' outputs (N, B·S, C) back in token order (B, T, C); empty slots are dropped, gradient and all."""
    rows, _, size = partition.tokens.shape
    expert, slot = partition.slots // size, partition.slots % size
    flat = expert * (rows * size) + _row_offsets(rows, size, groups.device)[..., 0] + slot
    tokens = groups.flatten(0, 1).index_select(0, flat.reshape(-1))
    return tokens.view(*partition.slots.shape, groups.shape[-1])


def _row_offsets(rows: int, step: int, device: torch.device) -> Tensor:
    """Start of each row in a flattened (rows, step) grid, (B, 1, 1) to broadcast."""
    return (torch.arange(rows, device=device) * step)[:, None, None]
