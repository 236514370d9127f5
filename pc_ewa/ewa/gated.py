"""GatedFFN: the naive top-1 mixture of experts (Switch Transformer, arXiv 2101.03961), a baseline for EWA."""

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.ewa.experts import Mixture
from pc_ewa.ewa.routing import Partition, combine, dispatch
from pc_ewa.ewa.stacks import Init

CANNOT_MERGE = "{} chooses its experts by content, so it stays a mixture at inference: it cannot be merged"


@dataclass(frozen=True)
class Gate:
    """Settings of a gated mixture (Switch Transformer, arXiv 2101.03961, section 2.2).

    Args:
        capacity_factor: in training an expert takes at most ceil(capacity_factor * tokens / N) tokens.
        balance_weight: weight of the load-balance loss.

    Raises:
        ValueError: a capacity factor that is not above 0, a weight below 0, or one that is not finite.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 32)
        >>> model = pc_ewa.upcycle(layer, layers="all", gate=pc_ewa.Gate(capacity_factor=2.0))
        >>> model.linear1
        GatedFFN(
          num_experts=4, capacity_factor=2.0, balance_weight=0.01
          (experts): SplitFFN(
            (0): ExpertLinear(4 experts, in_features=8, out_features=32)
            (1): Function()
            (2): Dropout(p=0.1, inplace=False)
            (3): ExpertLinear(4 experts, in_features=32, out_features=8)
          )
          (gate): Linear(in_features=8, out_features=4, bias=False)
        )
    """

    capacity_factor: float = 1.25
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.capacity_factor < math.inf:
            raise ValueError(f"capacity_factor={self.capacity_factor}; it must be above 0 and finite, such as 1.25")
        if not 0 <= self.balance_weight < math.inf:
            raise ValueError(f"balance_weight={self.balance_weight}; it must be at least 0 and finite, such as 0.01")


class GatedFFN(Mixture):
    """A mixture of N experts shaped like one FFN, with a learned top-1 gate. It stays a mixture at inference.

    The gate is a linear layer C -> N without bias and a softmax, at least in float32. A token is routed to its most
    probable expert. The output is the output of the expert times that probability. In training, tokens beyond the
    capacity of their expert, in the order of the flattened batch, are dropped. Their output is 0, so that only the
    residual connection of the host carries them. In evaluation no token is dropped, and none depends on the others.

    `balance` is the load-balance loss of the latest training forward, balance_weight * N * Σ_i f_i P_i. Here f_i is the
    fraction of tokens whose first choice is i, dropped ones included, and P_i is the mean probability of i. It is None
    before the first training forward. It is not part of the state_dict, nor of a copy. See `balance_loss`.

    Args:
        ffn: the FFN, see `Mixture`.
        gate: capacity and weight of the balance loss.
        num_experts: N >= 2.
        init: "copy" or "independent", see `Mixture`. The gate is initialised as the linear layers of a ViT.

    Raises:
        ValueError: as in `Mixture`.

    Example:
        >>> ffn = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> mixture = pc_ewa.ewa.GatedFFN(ffn, pc_ewa.Gate(), num_experts=4)
        >>> mixture(torch.rand(2, 10, 8)).shape, mixture.balance.shape
        (torch.Size([2, 10, 8]), torch.Size([]))
    """

    def __init__(self, ffn: nn.Module, gate: Gate, num_experts: int = 4, init: Init = "copy") -> None:
        super().__init__(ffn, num_experts, init)
        self.settings = gate
        first = next(self.experts.parameters())
        self.gate = nn.Linear(self.form.width, num_experts, bias=False, device=first.device, dtype=first.dtype)
        nn.init.trunc_normal_(self.gate.weight, std=0.02)
        self.gate.train(self.training)
        self.balance: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., T, C) or feature maps (B, C, H, W). All tokens are routed together."""
        last = x.movedim(self.form.axis, -1)
        tokens, dims = last.reshape(-1, self.form.width), x.dim()
        probabilities = self._probabilities(tokens)
        chosen = probabilities.argmax(dim=1)
        if self.training:
            balance = self._balance(probabilities, chosen)
            # Activation checkpointing runs this forward again within the backward, where the id is not -1. The balance
            # of that second run belongs to no loss, and keeping it would keep its graph in memory. Compiled code
            # recomputes a graph, not this line.
            if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
                self.balance = balance
            output = self._within_capacity(tokens, chosen, dims)
        else:
            output = self._one_by_one(tokens, chosen, dims)
        output = probabilities.gather(1, chosen[:, None]).to(output.dtype) * output
        return self.returned(output.reshape(last.shape).movedim(-1, self.form.axis))

    def _probabilities(self, tokens: Tensor) -> Tensor:
        """Compute the probability of each expert for each token, (T, N)."""
        with torch.autocast(tokens.device.type, enabled=False):
            dtype = torch.promote_types(self.gate.weight.dtype, torch.float32)
            return F.linear(tokens.to(dtype), self.gate.weight.to(dtype)).softmax(dim=1)

    def _balance(self, probabilities: Tensor, chosen: Tensor) -> Tensor:
        count = max(1, len(chosen))
        shares = F.one_hot(chosen, self.num_experts).sum(0).to(probabilities.dtype) / count
        return self.settings.balance_weight * self.num_experts * (shares * probabilities.sum(0) / count).sum()

    def _within_capacity(self, tokens: Tensor, chosen: Tensor, dims: int) -> Tensor:
        """Run all experts at once on groups of equal size. The output is 0 for tokens beyond the capacity."""
        count = len(tokens)
        # An expert never needs more room than there are tokens.
        capacity = min(count, math.ceil(self.settings.capacity_factor * count / self.num_experts))
        dealt, kept = _first_come(chosen, self.num_experts, capacity)
        output = combine(self.map_groups(dispatch(tokens[None], dealt), dims), dealt)[0]
        return output.masked_fill(~kept[:, None], 0)

    def _one_by_one(self, tokens: Tensor, chosen: Tensor, dims: int) -> Tensor:
        """Run each expert on its own tokens, however many. The FLOPs are those of one FFN."""
        # Sort the tokens by expert, so that each expert gets one slice. `argsort` of a permutation is its inverse.
        order = chosen.argsort(stable=True)
        groups = torch.split(tokens[order], F.one_hot(chosen, self.num_experts).sum(0).tolist())
        outputs = [self.map_by(expert, group, dims) for expert, group in zip(self.each(), groups, strict=True)]
        return torch.cat(outputs)[order.argsort()]

    def fuse(self) -> NoReturn:
        """Raise ValueError, because no plain FFN computes the same. timm calls the `fuse` of every module with one."""
        raise ValueError(CANNOT_MERGE.format("a GatedFFN"))

    def extra_repr(self) -> str:
        """Return the number of experts and the settings of the gate, for `print`."""
        gate = self.settings
        return (
            f"num_experts={self.num_experts}, capacity_factor={gate.capacity_factor}, "
            f"balance_weight={gate.balance_weight}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or a pickle, without the balance loss. Its graph cannot be copied."""
        return {**self.__dict__, "balance": None}


def has_gate(model: nn.Module) -> bool:
    """Return True if the model has gated mixtures.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 32)
        >>> pc_ewa.ewa.has_gate(pc_ewa.upcycle(layer, layers="all"))
        False
    """
    return any(isinstance(module, GatedFFN) for module in model.modules())


def balance_loss(model: nn.Module) -> Tensor:
    """Return the sum of the load-balance losses of the latest training forward, each times its weight.

    It is 0 without gated mixtures. Add it to the loss after each forward and before its backward. Activation
    checkpointing needs `use_reentrant=False`: the reentrant kind runs the forward without gradients, so this loss would
    have none.

    Returns:
        A scalar, in float32 unless the gates are in float64.

    Example:
        >>> model = pc_ewa.upcycle(nn.TransformerEncoderLayer(8, 2, 32), layers="all", gate=pc_ewa.Gate())
        >>> (model(torch.rand(4, 5, 8)).sum() + pc_ewa.balance_loss(model)).backward()
        >>> model.linear1.gate.weight.grad.shape
        torch.Size([4, 8])
    """
    losses = [m.balance for m in model.modules() if isinstance(m, GatedFFN) and m.balance is not None]
    if not losses:
        return torch.zeros(())
    total = torch.stack(losses).sum()

    # After the backward only the number is kept. A mixture that the next forward skips (stochastic depth) would
    # otherwise lead that backward into a graph whose buffers are freed.
    def forget_graph(gradient: Tensor) -> None:
        for loss in losses:
            loss.detach_()

    if total.requires_grad:
        total.register_hook(forget_graph)  # type: ignore[no-untyped-call]
    return total


def _first_come(chosen: Tensor, num_experts: int, capacity: int) -> tuple[Partition, Tensor]:
    """Assign each token (T,) to a slot of its chosen expert, in order, while there are slots.

    Returns:
        The partition, and a mask (T,) of the tokens that have a slot.
    """
    # The cumulative sum counts the tokens up to each one that chose the same expert: its place in that queue.
    rank = F.one_hot(chosen, num_experts).cumsum(0).gather(1, chosen[:, None])[:, 0] - 1
    kept = rank < capacity
    # A mask would make shapes depend on values, and wait for the GPU. All dropped tokens are written to one extra slot
    # instead, which is cut off.
    slots = torch.where(kept, chosen * capacity + rank, num_experts * capacity)
    everyone = torch.arange(len(chosen), device=chosen.device)
    taken = everyone.new_full((num_experts * capacity + 1,), len(chosen)).scatter_(0, slots, everyone)
    grid = taken[:-1].view(1, num_experts, capacity)
    # A dropped token reads the last slot, whoever has it: `_within_capacity` replaces its output by 0.
    return Partition(grid, slots.clamp(max=num_experts * capacity - 1)[None]), kept
