"""Mixture: N stacked copies of one FFN. ExpertFFN: a mixture with random routing, which can be merged into the FFN."""

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
    """N stacked copies of one FFN, `experts`. A subclass decides how tokens are routed to them.

    If all parameters of the FFN are in `nn.Linear`s (plain and gated FFNs), one batched product per layer computes all
    experts. Any other FFN, with norms, scales, 1x1 convolutions or custom layers, is called once per expert on its
    share of the tokens. That takes the same FLOPs in more and smaller steps.

    Args:
        ffn: the FFN. It maps tokens (..., C) to (..., C), or feature maps (B, C, H, W) to the same shape, token by
            token. It is copied.
        num_experts: N >= 2.
        init: "copy" starts every expert as the FFN. "independent" gives each expert but the first a random permutation
            of the FFN's initial weights, so that they have the distribution that the host drew them from.

    Attributes:
        experts: the FFN with each of its parameters stacked to (N, ...), under its former name.
        form: the width of a token, and the axis of its features.
        merged: True once `merge_experts` has removed it from its model.
        averaged: True once an averager has taken a step with it in this process.

    Raises:
        ValueError: fewer than 2 experts, an unknown init, or an FFN that does not map token by token.

    Example:
        >>> mixture = pc_ewa.ewa.Mixture(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), 4, "copy")
        >>> mixture.experts[0].weight.shape
        torch.Size([4, 32, 8])
    """

    merged = False
    averaged = False

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
        """Map groups of tokens (N, S, C), each by its own expert, in training. The host's tensors have `dims` axes."""
        if self.batched:
            return self.experts(groups)
        outputs = [self.map_by(expert, group, dims) for expert, group in zip(self.each(), groups, strict=True)]
        return torch.stack(outputs)

    def each(self) -> Iterator[tuple[Tensor, ...]]:
        """Return an iterator over the experts, each as its parameters in the order of `experts.parameters()`."""
        return zip(*(stack.unbind() for stack in self.experts.parameters()), strict=True)

    def map_by(self, expert: tuple[Tensor, ...], tokens: Tensor, dims: int = 3) -> Tensor:
        """Map tokens (S, C) by the expert with these parameters, in the layout of a host of `dims` axes."""
        if self.batched:
            # A stack of one expert: in evaluation ExpertLinear takes the mean of the stack, which is this expert.
            return self._call(tuple(parameter[None] for parameter in expert), tokens)
        # The FFN may need the number of axes that its host has, for a norm over axis 1 or a convolution.
        ones = (1,) * max(0, dims - 2)
        if self.form.axis == -1:
            return self._call(expert, tokens.view(*ones, *tokens.shape)).view(tokens.shape)
        # The tokens as the pixels of one image (1, C, S, 1): faster than S images of one pixel. Convolutions refuse an
        # image without pixels but take a batch of 0 images, so that is the layout without tokens.
        count, width = tokens.shape
        image = tokens.t().view(1, width, count, *ones[1:]) if count else tokens.view(0, width, *ones)
        return self._call(expert, image).reshape(width, count).t()

    def map_by_mean(self, x: Tensor) -> Tensor:
        """Map the input of the host by the FFN whose weights are the mean of the experts, in evaluation."""
        if self.batched:
            return self.experts(x)
        return self._call(tuple(merge_stack(stack) for stack in self.experts.parameters()), x)

    def returned(self, x: Tensor) -> Tensor:
        """Return the output, as a copy if FSDP2 shards the mixture as a unit.

        FSDP2 registers its backward hook on the output of a module. A host that adds to the output in place would lose
        the hook if the output were a view.
        """
        return x.clone() if hasattr(self, "reshard") else x

    def _call(self, parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
        names = [name for name, _ in self.experts.named_parameters()]
        return functional_call(self.experts, dict(zip(names, parameters, strict=True)), x)


class ExpertFFN(Mixture):
    """A mixture of N experts shaped like one FFN (EWA, arXiv 2308.06093).

    In training the tokens of each call are routed to the experts at random. In evaluation the FFN runs with the mean of
    the experts' weights. Either way the FLOPs are those of one FFN.

    Args:
        ffn: the FFN, see `Mixture`.
        num_experts: N >= 2.
        init: "copy" or "independent", see `Mixture`.
        partition: route the tokens of the whole "batch" together, or those of each "sample" separately.

    Raises:
        ValueError: as in `Mixture`, or an unknown partition.

    Example:
        >>> ffn = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> mixture = pc_ewa.ewa.ExpertFFN(ffn, num_experts=4)
        >>> mixture(torch.rand(2, 10, 8)).shape, mixture.fuse()
        (torch.Size([2, 10, 8]), Sequential(
          (0): Linear(in_features=8, out_features=32, bias=True)
          (1): GELU(approximate='none')
          (2): Linear(in_features=32, out_features=8, bias=True)
        ))
    """

    def __init__(
        self, ffn: nn.Module, num_experts: int = 4, init: Init = "copy", partition: PartitionScope = "batch"
    ) -> None:
        if partition not in ("batch", "sample"):
            raise ValueError(f"partition={partition!r}; choose 'batch' or 'sample'")
        super().__init__(ffn, num_experts, init)
        self.partition = partition

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., T, C), where the axes before T are the batch, or feature maps (B, C, H, W)."""
        if not self.training:
            return self.map_by_mean(x)
        if self.form.axis == 1:
            pixels = x.flatten(2).transpose(1, 2)
            return self.returned(self._deal(pixels, x.dim()).transpose(1, 2).reshape(x.shape))
        return self.returned(self._deal(x, x.dim()))

    def _deal(self, x: Tensor, dims: int) -> Tensor:
        """Route tokens (..., T, C) to random experts, map them, and restore their order."""
        # A partition balances the experts within each row. One row is the whole batch; otherwise a row is a sample.
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
            raise ValueError("the experts are sharded over processes; call whole_copy(mixture).fuse() on all of them")
        return fuse_stacks(self.experts)

    def extra_repr(self) -> str:
        """Return the number of experts and the partition, for `print`."""
        return f"num_experts={self.num_experts}, partition={self.partition!r}"


@contextmanager
def routed_experts(model: nn.Module) -> Iterator[None]:
    """Route each token to one random expert in a `with` block, also in evaluation, instead of using their mean.

    It applies to each `ExpertFFN`. Dropout, norms, gated mixtures and all other modules keep their mode.

    Example:
        >>> model = pc_ewa.upcycle(nn.TransformerEncoderLayer(8, 2, 32), layers="all", init="independent").eval()
        >>> x = torch.rand(4, 5, 8)
        >>> with pc_ewa.ewa.routed_experts(model):
        ...     torch.equal(model(x), model(x))  # two draws
        False
    """
    # Only the flags of the mixture and of its stacked layers: `train()` would also switch on the dropout in the FFN.
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
    """Return the form of an FFN's tokens. It follows from the layers if the FFN maps groups, or else is tested."""
    reason = why_no_expert("", ffn)
    if batched and not reason:
        linear = next(module for module in ffn.modules() if type(module) is nn.Linear)
        return TokenForm(linear.in_features, -1)
    form = reason or find_token_form(ffn)
    if isinstance(form, str):
        raise ValueError(f"{type(ffn).__name__} cannot become experts: {form}")
    return form
