"""Stacks: each parameter of N experts as one tensor (N, ...), and the mean over the experts as a plain layer."""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.bare import is_bare

Init = Literal["copy", "independent"]


def merge_stack(stack: Tensor) -> Tensor:
    """Return the mean over the experts (axis 0). It is bit-exact if all experts are equal."""
    if len(stack) == 1:
        return stack[0]
    # The mean of the differences to the first expert is exactly 0 for equal experts. A plain mean rounds: the sum
    # x + x + x, divided by 3, need not be x. So upcycling and merging without training returns the same weights.
    return stack[0] + (stack - stack[0]).mean(0)


class ExpertLinear(nn.Module):
    """N stacked linear layers: weight (N, out, in), bias (N, out).

    In training each expert maps its own group, (N, S, in) to (N, S, out). In evaluation it is one linear layer with
    the mean of the experts' weights, on any (..., in).

    Example:
        >>> layer = pc_ewa.ewa.ExpertLinear(nn.Linear(8, 16), num_experts=4)
        >>> layer(torch.rand(4, 10, 8)).shape, layer.eval()(torch.rand(10, 8)).shape
        (torch.Size([4, 10, 16]), torch.Size([10, 16]))
    """

    def __init__(self, linear: nn.Linear, num_experts: int, init: Init = "copy") -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = _stacked(linear.weight, num_experts, init)
        self.bias = None if linear.bias is None else _stacked(linear.bias, num_experts, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map groups (N, S, in) in training, or tokens (..., in) in evaluation."""
        if not self.training:
            return F.linear(x, merge_stack(self.weight), None if self.bias is None else merge_stack(self.bias))
        # Weights on the left of the product, so that their gradient has their memory layout. On the right it comes out
        # transposed, and copying it to that layout takes up to 5 % of a training step.
        channels_first = x.transpose(1, 2)
        if self.bias is None:
            return torch.bmm(self.weight, channels_first).transpose(1, 2)
        return torch.baddbmm(self.bias[:, :, None], self.weight, channels_first).transpose(1, 2)

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """Return the plain linear layer whose weights are the mean of the experts."""
        has_bias, dtype = self.bias is not None, self.weight.dtype
        # On "meta" the constructor draws no random initialisation, so torch's generator does not advance.
        linear = nn.Linear(self.in_features, self.out_features, has_bias, device="meta", dtype=dtype)
        linear = linear.to_empty(device=self.weight.device)
        for name, stack in self.named_parameters():
            plain = linear.get_parameter(name)
            plain.copy_(merge_stack(stack))
            plain.requires_grad_(stack.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes as nn.Linear prints them."""
        experts = self.weight.shape[0]
        return f"{experts} experts, in_features={self.in_features}, out_features={self.out_features}"


def maps_groups(ffn: nn.Module) -> bool:
    """Return True if an FFN maps groups (N, S, C) at once when its linear layers are stacked.

    All of its parameters must belong to `nn.Linear`s, of which none has a hook: the stacked layers have none.
    """
    linears = [m for m in ffn.modules() if type(m) is nn.Linear]
    if not all(is_bare(linear, nn.Linear) for linear in linears):
        return False
    held = {id(parameter) for linear in linears for parameter in linear.parameters()}
    if not linears or next(ffn.buffers(), None) is not None or any(id(p) not in held for p in ffn.parameters()):
        return False
    # The layers alone do not decide: a forward may flatten or transpose its input. So it is run on "meta", which needs
    # no data and little time, with 2 groups of 3 tokens: sizes that fit nowhere else by coincidence.
    plain = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in ffn.parameters()}
    trial = stack_linears(copy.deepcopy(ffn, dict(plain)), 2, "copy").train()
    groups = torch.empty(2, 3, linears[0].in_features, device="meta", dtype=linears[0].weight.dtype)
    try:
        with torch.no_grad():
            return trial(groups).shape == groups.shape
    except Exception:  # the forward of an unknown FFN can raise anything; one call per expert works then
        return False


def stack_linears(ffn: nn.Module, num_experts: int, init: Init) -> nn.Module:
    """Copy an FFN with `ExpertLinear`s as its linear layers. In training a call of the copy maps all groups at once."""
    experts = copy.deepcopy(ffn)
    for name, linear in list(experts.named_modules()):
        if type(linear) is nn.Linear:
            experts = _replaced(experts, name, ExpertLinear(linear, num_experts, init))
    return experts


def stack_parameters(ffn: nn.Module, num_experts: int, init: Init) -> nn.Module:
    """Copy an FFN with stacked parameters (N, ...).

    The copy is called by `functional_call` with the parameters of one expert, or with their mean.
    """
    # deepcopy takes entries of its memo as copies that exist already, so it puts the stacks in place of the parameters.
    stacks = {id(parameter): _stacked(parameter, num_experts, init) for parameter in ffn.parameters()}
    return copy.deepcopy(ffn, dict(stacks))


@torch.no_grad()
def fuse_stacks(experts: nn.Module) -> nn.Module:
    """Return the plain FFN whose parameters are the mean of the experts.

    `experts` is a copy made by `stack_linears` or by `stack_parameters`.
    """
    # The memo also saves memory: deepcopy does not copy the stacks, which are N times as large, only to drop them.
    memo: dict[int, nn.Module | nn.Parameter] = {
        id(layer): layer.fuse() for layer in experts.modules() if isinstance(layer, ExpertLinear)
    }
    if not memo:
        memo = {id(p): nn.Parameter(merge_stack(p.data), p.requires_grad) for p in experts.parameters()}
    return copy.deepcopy(experts, dict(memo))


def _stacked(tensor: Tensor, num_experts: int, init: Init) -> nn.Parameter:
    stack = tensor.detach().expand(num_experts, *tensor.shape).clone()
    if init == "independent":
        # A permutation of the weights has the distribution that the host drew them from, whatever it is.
        for expert in stack[1:]:
            shuffle = torch.randperm(expert.numel(), device=expert.device)
            expert.copy_(expert.flatten()[shuffle].view_as(expert))
    return nn.Parameter(stack, requires_grad=tensor.requires_grad)


def _replaced(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` at the dotted `name` of `root`, and return the root. An empty name replaces the root itself."""
    if not name:
        return module
    root.set_submodule(name, module)
    return root
