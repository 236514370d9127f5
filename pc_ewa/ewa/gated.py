"""GatedFFN: the naive top-1 mixture of experts (Switch Transformer, arXiv 2101.03961), a rival of EWA."""

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
    """A mixture of N experts shaped like one FFN, behind a learned top-1 gate; it stays a mixture at inference.

    The gate is a linear layer C -> N without bias, and a softmax, in float32 at least. A token goes to its most
    probable expert; the output is that probability times what the expert makes of it. In training, tokens beyond the
    capacity of their expert, in the order of the flattened batch, are dropped: their output is 0, so that only the
    host's residual carries them. In evaluation no token is dropped, and none depends on the others.

    `balance` is the load-balance loss of the latest training forward, balance_weight * N * Σ_i f_i P_i, with f_i the
    share of tokens whose first choice is i, dropped ones included, and P_i the mean probability of i; None before. It
    is no part of the state_dict, nor of a copy. See `balance_loss`.

    Args:
        ffn: the FFN, see `Mixture`.
        gate: capacity and weight of the balance loss.
        num_experts: N >= 2.
        init: "copy" or "independent", see `Mixture`. The gate starts as the linear layers of a ViT do.

    Raises:
        ValueError: as in `Mixture`.
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
        """Map tokens (..., T, C), or maps (B, C, H, W), all of them one batch."""
        last = x.movedim(self.form.axis, -1)
        tokens, dims = last.reshape(-1, self.form.width), x.dim()
        probabilities = self._probabilities(tokens)
        chosen = probabilities.argmax(dim=1)
        if self.training:
            balance = self._balance(probabilities, chosen)
            # Within a backward, activation checkpointing runs this again: that graph would only hold on to memory.
            # Compiled, what it runs again is a graph, and not this.
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
        """Run all experts at once on groups of equal size; 0 for the tokens that find no room."""
        count = len(tokens)
        # An expert never needs more room than there are tokens.
        capacity = min(count, math.ceil(self.settings.capacity_factor * count / self.num_experts))
        dealt, kept = _first_come(chosen, self.num_experts, capacity)
        output = combine(self.map_groups(dispatch(tokens[None], dealt), dims), dealt)[0]
        return output.masked_fill(~kept[:, None], 0)

    def _one_by_one(self, tokens: Tensor, chosen: Tensor, dims: int) -> Tensor:
        """Run each expert on its own tokens, however many: no more FLOPs than those of the one FFN."""
        order = chosen.argsort(stable=True)
        groups = torch.split(tokens[order], F.one_hot(chosen, self.num_experts).sum(0).tolist())
        outputs = [self.map_by(expert, group, dims) for expert, group in zip(self.each(), groups, strict=True)]
        return torch.cat(outputs)[order.argsort()]

    def fuse(self) -> NoReturn:
        """Raise ValueError: no plain FFN does the same. For those who fuse whatever has a `fuse`, as timm does."""
        raise ValueError(CANNOT_MERGE.format("a GatedFFN"))

    def extra_repr(self) -> str:
        """Number of experts and the settings of the gate."""
        gate = self.settings
        return (
            f"num_experts={self.num_experts}, capacity_factor={gate.capacity_factor}, "
            f"balance_weight={gate.balance_weight}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle: without the balance loss, whose graph cannot be copied."""
        return {**self.__dict__, "balance": None}


def has_gate(model: nn.Module) -> bool:
    """Return True if the model has gated mixtures."""
    return any(isinstance(module, GatedFFN) for module in model.modules())


def balance_loss(model: nn.Module) -> Tensor:
    """Sum of the load-balance losses of the latest training forward, weights included; 0 without gated mixtures.

    Add it to the loss after each forward and before its backward. After that backward only the number is left, so that
    a mixture that the next forward skips does not lead into a graph that is gone. Activation checkpointing needs
    `use_reentrant=False`: the reentrant kind runs forward without gradients, and this loss would have none.

    Returns:
        A scalar, in float32 unless the gates are in float64.
    """
    losses = [m.balance for m in model.modules() if isinstance(m, GatedFFN) and m.balance is not None]
    if not losses:
        return torch.zeros(())
    total = torch.stack(losses).sum()

    def forget_graph(gradient: Tensor) -> None:
        for loss in losses:
            loss.detach_()

    if total.requires_grad:
        total.register_hook(forget_graph)  # type: ignore[no-untyped-call]
    return total


def _first_come(chosen: Tensor, num_experts: int, capacity: int) -> tuple[Partition, Tensor]:
    """Give each token (T,) a slot at its chosen expert while there are any; also, which tokens have one (T,)."""
    rank = F.one_hot(chosen, num_experts).cumsum(0).gather(1, chosen[:, None])[:, 0] - 1
    kept = rank < capacity
    # One slot more than there are takes all tokens that are dropped.
    slots = torch.where(kept, chosen * capacity + rank, num_experts * capacity)
    everyone = torch.arange(len(chosen), device=chosen.device)
    taken = everyone.new_full((num_experts * capacity + 1,), len(chosen)).scatter_(0, slots, everyone)
    grid = taken[:-1].view(1, num_experts, capacity)
    return Partition(grid, slots.clamp(max=num_experts * capacity - 1)[None]), kept
