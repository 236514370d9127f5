"""Mixture: N stacked copies of one FFN. ExpertFFN: those behind a random uniform partition, and back to the FFN."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.ewa.routing import combine, dispatch, uniform_partition

Init = Literal["copy", "independent"]
PartitionScope = Literal["batch", "sample"]


def merge_stack(stack: Tensor) -> Tensor:
    """Mean over the experts (axis 0), bit-exact when all experts are equal, as a plain mean of N = 3 is not."""
    if len(stack) == 1:
        return stack[0]
    return stack[0] + (stack - stack[0]).mean(0)


class ExpertLinear(nn.Module):
    """N stacked linear layers: weight (N, out, in), bias (N, out).

    In training each expert maps its own group, (N, S, in) to (N, S, out). In evaluation it is one linear layer
    whose weights are the mean of the experts, on any (..., in).
    """

    def __init__(self, linear: nn.Linear, num_experts: int, init: Init = "copy") -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = _stacked(linear.weight, num_experts, init)
        self.bias = None if linear.bias is None else _stacked(linear.bias, num_experts, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map groups in training, plain tokens in evaluation."""
        if not self.training:
            return F.linear(x, merge_stack(self.weight), None if self.bias is None else merge_stack(self.bias))
        if self.bias is None:
            return torch.bmm(x, self.weight.transpose(1, 2))
        return torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2))

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """Return the plain linear layer whose weights are the mean of the experts."""
        has_bias, dtype = self.bias is not None, self.weight.dtype
        # By way of "meta", so that no random initialisation is drawn.
        linear = nn.Linear(self.in_features, self.out_features, has_bias, device="meta", dtype=dtype)
        linear = linear.to_empty(device=self.weight.device)
        for name, stack in self.named_parameters():
            plain = linear.get_parameter(name)
            plain.copy_(merge_stack(stack))
            plain.requires_grad_(stack.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, as nn.Linear prints them."""
        experts = self.weight.shape[0]
        return f"{experts} experts, in_features={self.in_features}, out_features={self.out_features}"


class Mixture(nn.Module):
    """N stacked copies of one FFN, `experts`; how tokens get to them is for subclasses to say.

    Args:
        ffn: the FFN; maps (..., C) to (..., C), token by token, with all its parameters in `nn.Linear`s. Copied.
        num_experts: N >= 2.
        init: "copy" starts every expert as the FFN; "independent" gives each but the first its own shuffle of the
            FFN's initial weights, so that they follow whatever law the host drew them from.

    Attributes:
        merged: whether `merge_experts` has taken it out of its model.

    Raises:
        ValueError: fewer than 2 experts, an unknown init, or an FFN that this cannot stack.
    """

    merged = False

    def __init__(self, ffn: nn.Module, num_experts: int, init: Init) -> None:
        super().__init__()
        if not isinstance(num_experts, int) or num_experts < 2:
            raise ValueError(f"num_experts={num_experts!r}; a mixture needs at least 2, a whole number")
        if init not in ("copy", "independent"):
            raise ValueError(f"init={init!r}; choose 'copy' or 'independent'")
        _check_stackable(ffn)
        self.num_experts = num_experts
        self.experts = copy.deepcopy(ffn)
        for name, linear in list(self.experts.named_modules()):
            if type(linear) is nn.Linear:
                self.experts = _replaced(self.experts, name, ExpertLinear(linear, num_experts, init))
        self.train(ffn.training)


class ExpertFFN(Mixture):
    """A mixture of N experts shaped like one FFN (EWA, arXiv 2308.06093).

    In training the tokens of each call are dealt at random to the experts; in evaluation the FFN runs with the
    mean of their weights. FLOPs equal those of the one FFN either way.

    Args:
        ffn: the FFN, see `Mixture`.
        num_experts: N >= 2.
        init: "copy" or "independent", see `Mixture`.
        partition: deal the tokens of the whole "batch" together, or those of each "sample" apart.

    Raises:
        ValueError: as in `Mixture`, or an unknown partition.
    """

    def __init__(
        self, ffn: nn.Module, num_experts: int = 4, init: Init = "copy", partition: PartitionScope = "batch"
    ) -> None:
        if partition not in ("batch", "sample"):
            raise ValueError(f"partition={partition!r}; choose 'batch' or 'sample'")
        super().__init__(ffn, num_experts, init)
        self.partition = partition

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., T, C); the axes before T are the batch."""
        if not self.training:
            return self.experts(x)
        rows = 1 if self.partition == "batch" else x.shape[:-2].numel()
        tokens = x.reshape(rows, x.shape[:-1].numel() // max(1, rows), x.shape[-1])
        dealt = uniform_partition(tokens.shape[0], tokens.shape[1], self.num_experts, x.device)
        return combine(self.experts(dispatch(tokens, dealt)), dealt).reshape(x.shape)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Return the plain FFN, of the host's class, whose weights are the mean of the experts."""
        # A memo with the fused layers in it keeps deepcopy from copying the stacks first.
        linears = [m for m in self.experts.modules() if isinstance(m, ExpertLinear)]
        return copy.deepcopy(self.experts, {id(linear): linear.fuse() for linear in linears})

    def extra_repr(self) -> str:
        """Number of experts and how tokens are dealt."""
        return f"num_experts={self.num_experts}, partition={self.partition!r}"


@contextmanager
def routed_experts(model: nn.Module) -> Iterator[None]:
    """Evaluate each `ExpertFFN` as it trains, every token through one expert drawn at random, not through their mean.

    Dropout, norms, gated mixtures and all else stay as they are: `model.eval()` first, then
    `with routed_experts(model): ...`.
    """
    mixtures = [m for m in model.modules() if isinstance(m, ExpertFFN)]
    modules = [m for mixture in mixtures for m in mixture.modules() if isinstance(m, ExpertFFN | ExpertLinear)]
    before = [m.training for m in modules]
    try:
        for module in modules:
            module.training = True
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _stacked(tensor: Tensor, num_experts: int, init: Init) -> nn.Parameter:
    stack = tensor.detach().expand(num_experts, *tensor.shape).clone()
    if init == "independent":
        for expert in stack[1:]:
            shuffle = torch.randperm(expert.numel(), device=expert.device)
            expert.copy_(expert.flatten()[shuffle].view_as(expert))
    return nn.Parameter(stack, requires_grad=tensor.requires_grad)


def _check_stackable(ffn: nn.Module) -> None:
    modules = [(name, module) for name, module in ffn.named_modules() if type(module) is nn.Linear]
    linear = {f"{name}.{kind}".lstrip(".") for name, _ in modules for kind in ("weight", "bias")}
    if not linear:
        raise ValueError(f"{type(ffn).__name__} has no nn.Linear: nothing to make experts of")
    others = [name for name, _ in (*ffn.named_parameters(), *ffn.named_buffers()) if name not in linear]
    if others:
        raise ValueError(
            f"{type(ffn).__name__} holds {', '.join(others)} outside of nn.Linear, which cannot be stacked into "
            "experts; point at a module whose parameters are all in nn.Linear layers"
        )


def _replaced(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` at the dotted `name` of `root`; an empty name is the root itself."""
    if not name:
        return module
    root.set_submodule(name, module)
    return root
