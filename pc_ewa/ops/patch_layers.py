"""Layers of the patch encoder that are limited by memory bandwidth: batch norm with ReLU, and the maximum of a patch.

In plain torch each reads and writes all features several times. Our C++ kernels take fewer passes, forward and
backward. They run on the CPU in float32 and float64; batch norm only where it computes statistics. Otherwise the plain
layers run.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.ops import cpu
from pc_ewa.ops.dispatch import backend
from pc_ewa.ops.registry import forward_mode


def norm_relu(x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d) -> Tensor:
    """Compute relu(norm(x + shift)), and update the running statistics of `norm` as it would.

    Args:
        x: features (P, K, C) of the K points of P patches.
        shift: (P, C), added to all points of a patch. None adds nothing.
        norm: a batch norm of C channels. Its statistics are those of all P · K rows.

    Example:
        >>> norm_relu(torch.randn(8, 32, 16), torch.randn(8, 16), nn.BatchNorm1d(16)).shape
        torch.Size([8, 32, 16])
    """
    if not (_has_kernels(x) and _takes_statistics(norm) and x.shape[:2].numel() > 1):
        return plain_norm_relu(x, shift, norm)
    y, mean, variance = _NormRelu.apply(x, shift, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    _update_statistics(norm, mean, variance, x.shape[:2].numel())
    return y


def plain_norm_relu(x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d) -> Tensor:
    """Compute `norm_relu` in plain torch."""
    moved = x if shift is None else x + shift[:, None]
    return F.relu(norm(moved.flatten(0, 1)), inplace=True).view(x.shape)


def largest(x: Tensor) -> Tensor:
    """Return the largest value of each channel over the points of a patch, (P, K, C) to (P, C).

    The gradient goes to one point, the first of those that tie.

    Example:
        >>> largest(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]]))
        tensor([[3., 5.]])
    """
    if not torch.is_grad_enabled():
        return x.amax(dim=1)  # a quarter of the time of `max`, because it does not compute the index
    if _has_kernels(x) and x.numel():
        return _Largest.apply(x)  # type: ignore[no-untyped-call]
    return x.max(dim=1).values


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, shift = x.contiguous(), None if shift is None else shift.contiguous()
        y, mean, variance = cpu.norm_relu(x, shift, weight, bias, eps)
        ctx.save_for_backward(x, shift, weight, bias, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():
            # create_graph=True asks for a second derivative, which the kernels do not have. Run the layer again in
            # plain torch and differentiate that.
            inputs = [tensor for tensor in (x, shift, weight, bias) if tensor is not None]
            moved = x if shift is None else x + shift[:, None]
            y = F.relu(F.batch_norm(moved.flatten(0, 1), None, None, weight, bias, training=True, eps=ctx.eps))
            found = list(torch.autograd.grad(y, inputs, grad.flatten(0, 1), create_graph=True, allow_unused=True))
            # `inputs` has no shift if that is None, so weight and bias are counted from the end.
            return found[0], None if shift is None else found[1], found[-2], found[-1], None
        return *cpu.norm_relu_backward(grad.contiguous(), x, shift, weight, bias, mean, variance, ctx.eps), None


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        values, winners = cpu.largest(x.contiguous())
        ctx.save_for_backward(winners)
        ctx.size = x.shape[1]
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (winners,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative, as above: the gradient is linear in `grad`
            points = torch.arange(ctx.size, device=grad.device)[:, None]
            return torch.where(winners[:, None] == points, grad[:, None], 0)
        return cpu.largest_backward(grad.contiguous(), winners, ctx.size)


def _has_kernels(x: Tensor) -> bool:
    """Return True for tensors that the compiled kernels can read, outside of traced code and forward-mode AD."""
    # `type(x) is Tensor`: a subclass, such as a DTensor or a fake tensor, need not have its data at data_ptr().
    readable = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and type(x) is Tensor
    return readable and not torch.compiler.is_compiling() and not forward_mode() and backend("cpu").name == "cpu"


def _takes_statistics(norm: nn.BatchNorm1d) -> bool:
    """Return True for a plain batch norm without hooks that normalises by the statistics of its batch."""
    # The kernel replaces the call of the module, so a subclass (SyncBatchNorm) or a hook would be ignored.
    takes = norm.training or norm.running_mean is None
    hooked = norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
    return takes and type(norm) is nn.BatchNorm1d and norm.affine and not hooked


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, rows: int) -> None:
    """Update the running statistics by those of a batch, as torch.nn.BatchNorm1d does."""
    if not (norm.training and norm.track_running_stats):
        return
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, rate)
    # BatchNorm normalises by the biased variance, but its running variance is the unbiased one.
    norm.running_var.lerp_(variance * (rows / (rows - 1)), rate)
