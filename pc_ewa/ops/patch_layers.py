"""Layers of the patch encoder that are limited by memory bandwidth: batch norm with ReLU, and the maximum of a patch.

In plain torch each reads and writes all features several times. Our C++ kernels take fewer passes, forward and
backward. They run on the CPU in float32 and float64; batch norm only where it computes statistics. Otherwise the plain
layers run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.bare import has_hooks, is_bare
from pc_ewa.ops import cpu
from pc_ewa.ops.dispatch import backend
from pc_ewa.ops.registry import forward_mode

# Patches whose features are computed together: 8 MB at official size, which stay in the processor's cache.
PART = 128


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
    if not _is_fused(x, shift, norm):
        return plain_norm_relu(x, shift, norm)
    mean, variance = _statistics(x, shift, norm)
    y: Tensor = _NormRelu.apply(*_contiguous(x, shift, norm), mean, variance, norm.eps)  # type: ignore[no-untyped-call]
    return y


def plain_norm_relu(x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d) -> Tensor:
    """Compute `norm_relu` in plain torch."""
    moved = x if shift is None else x + shift[:, None]
    # A hook may keep the output of the norm, and torch forbids to change it under a backward hook.
    return F.relu(norm(moved.flatten(0, 1)), inplace=not has_hooks(norm)).view(x.shape)


def norm_relu_linear_largest(
    x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Compute largest(linear(norm_relu(x, shift, norm))): the tail of the patch encoder, (P, K, C) to (P, D).

    The features between are computed a few patches at a time, in the processor's cache, and again for the gradient, so
    that they are never in memory as a whole.

    Args:
        x: features (P, K, C) of the K points of P patches.
        shift: (P, C), added to all points of a patch; None adds nothing.
        norm: a batch norm of C channels; its statistics are those of all P · K rows.
        weight: of the linear layer, (D, C).
        bias: of the linear layer, (D,). None adds nothing.

    Example:
        >>> x, shift, norm = torch.randn(8, 32, 16), torch.randn(8, 16), nn.BatchNorm1d(16)
        >>> norm_relu_linear_largest(x, shift, norm, torch.randn(24, 16), torch.randn(24)).shape
        torch.Size([8, 24])
    """
    # Autocast would change the type between the kernels.
    plain = torch.is_autocast_enabled("cpu") or bias is None or weight.dtype != x.dtype
    if plain or not (_is_fused(x, shift, norm) and torch.is_grad_enabled()):
        return largest(F.linear(norm_relu(x, shift, norm), weight, bias))
    mean, variance = _statistics(x, shift, norm)
    tokens: Tensor = _Tail.apply(*_contiguous(x, shift, norm), mean, variance, norm.eps, weight, bias)  # type: ignore[no-untyped-call]
    return tokens


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
        ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, shift, weight, bias, mean, variance)
        ctx.eps = eps
        return cpu.norm_relu(x, shift, cpu.Norm(weight, bias, mean, variance, eps))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, bias, mean, variance = ctx.saved_tensors
        if _needs_torch(grad):
            with torch.enable_grad():
                inputs = _renamed(x, shift, weight, bias)
                x, shift, weight, bias = inputs
                y = _differentiable(x, shift, weight, bias, ctx.eps)
            return *_gradients(y, inputs, grad), None, None, None
        norm = cpu.Norm(weight, bias, mean, variance, ctx.eps)
        # None for mean and variance: both depend on x and shift, whose gradients already contain that part.
        return *cpu.norm_relu_backward(grad.contiguous(), x, shift, norm), None, None, None


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, mean: Tensor,
        variance: Tensor, eps: float, weight: Tensor, bias: Tensor,
    ) -> Tensor:  # fmt: skip
        norm = cpu.Norm(norm_weight, norm_bias, mean, variance, eps)
        parts = [cpu.largest(F.linear(_features(x, shift, norm, some), weight, bias)) for some in _parts(x)]
        values, winners = (torch.cat(results) for results in zip(*parts, strict=True))
        ctx.save_for_backward(x, shift, norm_weight, norm_bias, mean, variance, weight, bias, winners)
        ctx.eps = eps
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, norm_weight, norm_bias, mean, variance, weight, bias, winners = ctx.saved_tensors
        size = x.shape[1]
        if _needs_torch(grad):
            with torch.enable_grad():
                inputs = _renamed(x, shift, norm_weight, norm_bias, weight, bias)
                x, shift, norm_weight, norm_bias, weight, bias = inputs
                features = F.linear(_differentiable(x, shift, norm_weight, norm_bias, ctx.eps), weight, bias)
                chosen = features.gather(1, winners[:, None].long())[:, 0]
            first = _gradients(chosen, inputs, grad)
            return *first[:4], None, None, None, *first[4:]
        norm, grad = cpu.Norm(norm_weight, norm_bias, mean, variance, ctx.eps), grad.contiguous()
        grad_features, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        for some in _parts(x):
            pulled = cpu.largest_backward(grad[some], winners[some], size).flatten(0, 1)
            torch.mm(pulled, weight, out=grad_features[some].view(-1, x.shape[2]))
            grad_weight.addmm_(pulled.t(), _features(x, shift, norm, some).flatten(0, 1))
        gradients = cpu.norm_relu_backward(grad_features, x, shift, norm, in_place=True)
        return *gradients, None, None, None, grad_weight, grad.sum(0)


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
        if _needs_torch(grad):
            points = torch.arange(ctx.size, device=grad.device)[:, None]
            return torch.where(winners[:, None] == points, grad[:, None], 0)
        return cpu.largest_backward(grad.contiguous(), winners, ctx.size)


def _contiguous(x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d) -> tuple[Tensor | None, ...]:
    """Return the inputs as the kernels read them: through plain pointers, without strides."""
    # Before `apply`: inside of it the copies would not be in the graph of a second derivative.
    return tuple(None if t is None else t.contiguous() for t in (x, shift, norm.weight, norm.bias))


def _needs_torch(grad: Tensor) -> bool:
    """Return True if a backward pass must be plain torch: for second derivatives, batched and traced gradients."""
    # `is_grads_batched` wraps gradients in one way, torch.vmap in another. Neither has memory for a kernel to read.
    wrapped = torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_functorch_wrapped_tensor(grad)
    return torch.is_grad_enabled() or bool(wrapped) or not _is_readable(grad)


def _parts(x: Tensor) -> Iterator[slice]:
    """Yield slices of the patches that are computed together."""
    return (slice(begin, begin + PART) for begin in range(0, len(x), PART))


def _features(x: Tensor, shift: Tensor | None, norm: cpu.Norm, some: slice) -> Tensor:
    """Compute relu(norm(x + shift)) of some patches."""
    return cpu.norm_relu(x[some], None if shift is None else shift[some], norm)


def _differentiable(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute relu(norm(x + shift)) in plain torch, for second derivatives."""
    moved = x if shift is None else x + shift[:, None]
    return F.relu(F.batch_norm(moved.flatten(0, 1), None, None, weight, bias, training=True, eps=eps)).view(x.shape)


def _renamed(*inputs: Tensor | None) -> tuple[Any, ...]:
    """Return the inputs as views of their own, so that the gradient of one contains no path through another."""
    # A shift may be computed from x. Its own path to x is the caller's graph, which autograd follows anyway.
    return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in inputs)


def _gradients(y: Tensor, inputs: Sequence[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """Return the gradients of the inputs as a graph; None for an input that is None or needs none."""
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def _is_fused(x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d) -> bool:
    """Return True where the kernels serve: on the CPU, for a plain batch norm that takes statistics of several rows."""
    if not (_has_kernels(x) and _takes_statistics(norm) and x.shape[:2].numel() > 1):
        return False
    if shift is not None and shift.shape != (x.shape[0], x.shape[2]):
        return False  # plain torch broadcasts it, or says that it cannot; a kernel would read beyond its end
    of_norm = [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None]
    if any(tensor.shape != (x.shape[2],) for tensor in of_norm):
        return False  # plain torch says so
    return all(t.dtype == x.dtype and not t.is_neg() for t in [*of_norm, *([] if shift is None else [shift])])


def _has_kernels(x: Tensor) -> bool:
    """Return True for tensors that the compiled kernels can read, outside of traced code and forward-mode AD."""
    if torch.compiler.is_compiling():  # first: what follows would break the graph
        return False
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dim() == 3
    transformed = torch._C._are_functorch_transforms_active()
    return fits and not transformed and _is_readable(x) and backend("cpu").name == "cpu"


def _is_readable(x: Tensor) -> bool:
    """Return True if a kernel may read a tensor through a pointer, which nothing that follows the operators sees."""
    # `type(x) is Tensor`: a subclass, such as a DTensor or a fake tensor, need not have its data at data_ptr(). A
    # tensor with the negative bit is a view of memory with the opposite numbers, also after contiguous().
    plain = type(x) is Tensor and not x.is_neg()
    # A dispatch mode, such as that of make_fx, sees no kernel that is called through a pointer.
    traced = torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    return plain and not traced and not forward_mode()


def _takes_statistics(norm: nn.BatchNorm1d) -> bool:
    """Return True for a plain batch norm without hooks that normalises by the statistics of its batch."""
    # The kernel replaces the call of the module, so a subclass (SyncBatchNorm) or a hook would be ignored.
    if not (is_bare(norm, nn.BatchNorm1d) and norm.affine):
        return False
    tracked = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    if norm.training and norm.track_running_stats and any(tensor is None for tensor in tracked):
        return False  # torch has rules of its own for a part of them
    return norm.training or norm.running_mean is None


@torch.no_grad()
def _statistics(x: Tensor, shift: Tensor | None, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return mean and variance of x + shift, and move the running ones towards them, as torch.nn.BatchNorm1d does."""
    mean, variance = cpu.norm_statistics(x.contiguous(), None if shift is None else shift.contiguous())
    if norm.training and norm.track_running_stats:
        assert norm.num_batches_tracked is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.num_batches_tracked.add_(1)
        rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        rows = x.shape[:2].numel()
        norm.running_mean.lerp_(mean, rate)
        norm.running_var.lerp_(variance * (rows / (rows - 1)), rate)
    return mean, variance
