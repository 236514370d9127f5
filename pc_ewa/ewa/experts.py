"""Mixture: N stacked copies of one FFN. ExpertFFN: those behind a random uniform partition, and back to the FFN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pc_ewa.ewa.probe import TokenForm, find_token_form
from pc_ewa.ewa.routing import combine, dispatch, uniform_partition
from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.ewa.stacks import (
    ExpertLinear,
    Init,
    fuse_stacks,
    maps_groups,
    merge_stack,
    stack_linears,
    stack_parameters,
)
from pc_ewa.ewa.structure import why_no_expert

PartitionScope = Literal["batch", "sample"]


class Mixture(nn.Module):
    """N stacked copies of one FFN, `experts`; how tokens get to them is for subclasses to say.

    Where all parameters are in `nn.Linear`s, plain or gated FFNs alike, one batched product per layer serves all
    experts. Any other FFN, with norms, scales, 1x1 convolutions or layers of its own, is called once per expert, on a
    share of the tokens each: the same FLOPs in more and smaller steps.

    Args:
        ffn: the FFN; maps (..., C) to (..., C), or maps (B, C, H, W) to their like, token by token. Copied.
        num_experts: N >= 2.
        init: "copy" starts every expert as the FFN; "independent" gives each but the first its own shuffle of the
            FFN's initial weights, so that they follow whatever law the host drew them from.

    Attributes:
        experts: the FFN, each of its parameters (N, ...) under the name that it had.
        form: the width of a token, and the axis on which it is.
        merged: whether `merge_experts` has taken it out of its model.

    Raises:
        ValueError: fewer than 2 experts, an unknown init, or an FFN that does not map token by token.
    """

    merged = False

    def __init__(self, ffn: nn.Module, num_experts: int, init: Init) -> None:
        super().__init__()
        if not isinstance(num_experts, int) or num_experts < 2:
            raise ValueError(f"num_experts={num_experts!r}; a mixture needs at least 2, a whole number")
        if init not in ("copy", "independent"):
            raise ValueError(f"init={init!r}; choose 'copy' or 'independent'")
        self.batched = maps_groups(ffn)
        self.num_experts, self.form = num_experts, _form_of(ffn, self.batched)
        self.experts = (stack_linears if self.batched else stack_parameters)(ffn, num_experts, init)
        self.train(ffn.training)

    def map_groups(self, groups: Tensor, dims: int = 3) -> Tensor:
        """Map tokens in groups (N, S, C), each by its own expert, in training; the host's tensors have `dims` axes."""
        if self.batched:
            return self.experts(groups)
        outputs = [self.map_by(expert, group, dims) for expert, group in zip(self.each(), groups, strict=True)]
        return torch.stack(outputs)

    def each(self) -> Iterator[tuple[Tensor, ...]]:
        """Give the parameters of each expert, in the order of `experts.parameters()`."""
        return zip(*(stack.unbind() for stack in self.experts.parameters()), strict=True)

    def map_by(self, expert: tuple[Tensor, ...], tokens: Tensor, dims: int = 3) -> Tensor:
        """Map tokens (S, C) by the expert of these parameters, as a host does whose tensors have `dims` axes."""
        if self.batched:
            # Of one expert alone, which in evaluation is the mean of all that there are.
            return self._call(tuple(parameter[None] for parameter in expert), tokens)
        ones = (1,) * max(0, dims - 2)
        if self.form.axis == -1:
            return self._call(expert, tokens.view(*ones, *tokens.shape)).view(tokens.shape)
        # A view of the tokens as the pixels of one image, faster than many images of one pixel; none may be empty.
        count, width = tokens.shape
        image = tokens.t().view(1, width, count, *ones[1:]) if count else tokens.view(0, width, *ones)
        return self._call(expert, image).reshape(width, count).t()

    def map_by_mean(self, x: Tensor) -> Tensor:
        """Map what the host gives by the FFN whose weights are the mean of the experts, in evaluation."""
        if self.batched:
            return self.experts(x)
        return self._call(tuple(merge_stack(stack) for stack in self.experts.parameters()), x)

    def returned(self, x: Tensor) -> Tensor:
        """Return the output as the host may have it: where FSDP2 shards the mixture by itself, memory of its own.

        FSDP2 hangs its hooks on what a module returns. Added to in place, as some hosts do, a view would lose them.
        """
        return x.clone() if hasattr(self, "reshard") else x

    def _call(self, parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
        names = [name for name, _ in self.experts.named_parameters()]
        return functional_call(self.experts, dict(zip(names, parameters, strict=True)), x)


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
        """Map tokens (..., T, C), the axes before T are the batch; or maps (B, C, H, W), of B·H·W tokens."""
        if not self.training:
            return self.map_by_mean(x)
        if self.form.axis == 1:
            pixels = x.flatten(2).transpose(1, 2)
            return self.returned(self._deal(pixels, x.dim()).transpose(1, 2).reshape(x.shape))
        return self.returned(self._deal(x, x.dim()))

    def _deal(self, x: Tensor, dims: int) -> Tensor:
        rows = 1 if self.partition == "batch" else x.shape[:-2].numel()
        tokens = x.reshape(rows, x.shape[:-1].numel() // max(1, rows), x.shape[-1])
        dealt = uniform_partition(tokens.shape[0], tokens.shape[1], self.num_experts, x.device)
        return combine(self.map_groups(dispatch(tokens, dealt), dims), dealt).reshape(x.shape)

    def fuse(self) -> nn.Module:
        """Return the plain FFN, of the host's class, whose weights are the mean of the experts.

        Raises:
            ValueError: experts that are sharded over processes.
        """
        if is_sharded(self):
            raise ValueError("the experts are sharded over processes; on all of them, whole_copy(mixture).fuse()")
        return fuse_stacks(self.experts)

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


def _form_of(ffn: nn.Module, batched: bool) -> TokenForm:
    """Return the form of an FFN's tokens; it is known of one that maps groups, and others are tried."""
    reason = why_no_expert("", ffn)
    if batched and not reason:
        linear = next(module for module in ffn.modules() if type(module) is nn.Linear)
        return TokenForm(linear.in_features, -1)
    form = reason or find_token_form(ffn)
    if isinstance(form, str):
        raise ValueError(f"{type(ffn).__name__} cannot become experts: {form}")
    return form
