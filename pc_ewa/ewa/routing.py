"""Random uniform partition (RUP): route tokens to experts at random, in equal groups, without a gate or a loss."""

from typing import NamedTuple

import torch
from torch import Tensor


class Partition(NamedTuple):
    """The route of each token to an expert.

    B rows of T tokens are routed to N experts. Each expert has S = ceil(T / N) slots per row.
    `tokens` (B, N, S) is the token in each slot, or T if the slot is empty.
    `slots` (B, T) is the slot of each token in the flattened (N, S) grid.

    Example:
        >>> routes = pc_ewa.ewa.Partition(torch.tensor([[[2, 0], [1, 3]]]), torch.tensor([[1, 2, 0, 3]]))
        >>> pc_ewa.ewa.dispatch(torch.tensor([[[10.0], [11.0], [12.0], [13.0]]]), routes)[..., 0]
        tensor([[12., 10.],
                [11., 13.]])
    """

    tokens: Tensor
    slots: Tensor


def uniform_partition(rows: int, tokens: int, num_experts: int, device: torch.device | None = None) -> Partition:
    """Draw a random partition of the tokens of each row (EWA, section "random uniform partition").

    Group sizes differ by at most one. If N does not divide the number of tokens, the experts with one more token are
    drawn at random.

    Example:
        >>> routes = pc_ewa.ewa.uniform_partition(rows=2, tokens=12, num_experts=4)
        >>> routes.tokens.shape, routes.tokens.flatten(1).sort().values[0]
        (torch.Size([2, 4, 3]), tensor([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11]))
    """
    share, rest = tokens // num_experts, tokens % num_experts  # torch.compile has no divmod of dynamic sizes
    # Sorting random keys draws a permutation for every row in one call; randperm draws a single one. The draw is from
    # torch's default generator, whose state activation checkpointing saves and restores: the recomputed forward routes
    # each token to the same expert.
    order = torch.rand(rows, tokens, device=device).argsort(1)
    slotted = order[:, : share * num_experts].view(rows, num_experts, share)
    if rest > 0:
        # Without this draw the first experts would always get the remaining tokens, and so more training.
        lucky = torch.rand(rows, num_experts, device=device).argsort(1)[:, :rest]
        last = order.new_full((rows, num_experts), tokens).scatter_(1, lucky, order[:, -rest:])
        slotted = torch.cat([slotted, last[:, :, None]], dim=2)
    taken = slotted.flatten(1)
    grid = torch.arange(taken.shape[1], device=device).expand(rows, -1)
    # Invert the map from slots to tokens by a scatter. Empty slots hold T, so they write to one extra column, which is
    # cut off.
    slots = order.new_empty(rows, tokens + 1).scatter_(1, taken, grid)[:, :tokens]
    return Partition(slotted, slots)


def dispatch(x: Tensor, partition: Partition) -> Tensor:
    """Gather tokens (B, T, C) into the groups of the experts, (N, B·S, C). Empty slots repeat the last token.

    Example:
        >>> routes = pc_ewa.ewa.uniform_partition(rows=2, tokens=10, num_experts=4)
        >>> pc_ewa.ewa.dispatch(torch.rand(2, 10, 8), routes).shape
        torch.Size([4, 6, 8])
    """
    rows, tokens, channels = x.shape
    # One index_select on flattened rows: `gather` would need an index as large as the tokens themselves, (B, T, C).
    flat = partition.tokens.clamp(max=tokens - 1) + _row_offsets(rows, tokens, x.device)
    groups = flat.transpose(0, 1).reshape(-1)
    return x.reshape(rows * tokens, channels).index_select(0, groups).view(partition.tokens.shape[1], -1, channels)


def combine(groups: Tensor, partition: Partition) -> Tensor:
    """Return the outputs of the experts, (N, B·S, C), to token order (B, T, C). Empty slots are dropped.

    Example:
        >>> x = torch.rand(2, 10, 8)
        >>> routes = pc_ewa.ewa.uniform_partition(rows=2, tokens=10, num_experts=4)
        >>> torch.equal(pc_ewa.ewa.combine(pc_ewa.ewa.dispatch(x, routes), routes), x)
        True
    """
    # A gather by `slots`, not a scatter by `tokens`: no index occurs twice, so the backward is deterministic, and an
    # empty slot gets no gradient. Only tokens that a gate drops share an index, and their gradient is 0.
    rows, _, size = partition.tokens.shape
    expert, slot = partition.slots // size, partition.slots % size
    flat = expert * (rows * size) + _row_offsets(rows, size, groups.device)[..., 0] + slot
    tokens = groups.flatten(0, 1).index_select(0, flat.reshape(-1))
    return tokens.view(*partition.slots.shape, groups.shape[-1])


def _row_offsets(rows: int, step: int, device: torch.device) -> Tensor:
    """Return the start of each row in a flattened (rows, step) grid, as (B, 1, 1) to broadcast."""
    return (torch.arange(rows, device=device) * step)[:, None, None]
