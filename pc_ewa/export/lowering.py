"""Replacements of our ops by ops of torch that other runtimes have, used while a model is traced."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pc_ewa.ops import registry
from pc_ewa.ops.reference import NEAR_ORIGIN

# onnxscript 0.7 treats constants up to this size as zero, and drops their addition. The weights 1 / (d + 1e-8) of an
# interpolation would then be infinite at d = 0.
_TAKEN_FOR_ZERO = 1e-8
# A power of two, because scaling by it and back is exact for results in the normal range.
_SCALE = 2.0**27
_ADDITIONS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """Compute the op of the reference by a loop in the graph, for clouds without padding that start at index 0."""
    # A Python loop would be unrolled to n copies of its body. The public while_loop compiles each loop separately, so
    # the operator below it is used.
    from torch._higher_order_ops.while_loop import while_loop_op

    if start is not None or lengths is not None:
        raise NotImplementedError("farthest_point_sample with start or lengths cannot be exported")
    x, y, z = (axis.contiguous() for axis in points.unbind(-1))
    nearest = torch.full_like(x, torch.inf)
    if skip_near_origin:
        nearest = nearest.masked_fill(x * x + y * y + z * z <= NEAR_ORIGIN, -1)
    first = torch.zeros_like(x[:, :1], dtype=torch.int64)
    chosen = torch.zeros(points.shape[0], n, dtype=torch.int64)

    def more(i: Tensor, *_: Tensor) -> Tensor:
        return i < n

    def step(i: Tensor, nearest: Tensor, last: Tensor, chosen: Tensor, *constant: Tensor) -> tuple[Tensor, ...]:
        slots, *axes = constant
        dx, dy, dz = (axis - axis.gather(1, last) for axis in axes)
        nearest = torch.minimum(nearest, dx * dx + dy * dy + dz * dz)
        last = nearest.argmax(1, keepdim=True)
        # A loop in the graph cannot write in place, so column i is replaced by `where`.
        return i + 1, nearest, last, torch.where(slots == i, last, chosen)

    begin = (torch.ones((), dtype=torch.int64), nearest, first, chosen)
    loop: Callable[..., tuple[Tensor, ...]] = while_loop_op
    return loop(more, step, begin, (torch.arange(n), x, y, z))[3]


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the op of the reference for clouds without padding, but with neighbours ordered by another key.

    Nearer ones than the k-th come first, then those at its distance, each in the order of their indices.
    """
    if lengths is not None:
        raise NotImplementedError("knn with lengths cannot be exported")
    dx, dy, dz = (queries[:, :, None, axis] - points[:, None, :, axis] for axis in range(3))
    distances = dx * dx + dy * dy + dz * dz
    # topk does not define the order of ties, neither in torch nor in OpenVINO. So the first topk only finds the k-th
    # distance. The second has keys without ties: it takes all nearer points, and then the first at that distance.
    kth = distances.topk(k, dim=-1, largest=False).values.amax(-1, keepdim=True)
    count = points.shape[1]
    position = torch.arange(count).to(distances.dtype)  # exact below 2^24 points
    keys = torch.where(distances < kth, position - count, torch.where(distances == kth, position, 2.0 * count))
    index = keys.topk(k, dim=-1, largest=False).indices
    return distances.gather(-1, index), index


LOWERED: dict[Any, Callable[..., Any]] = {
    torch.ops.pc_ewa.farthest_point_sample.default: farthest_point_sample,
    torch.ops.pc_ewa.knn.default: knn,
}
assert registry  # its import registers the ops above


class Lowering(TorchFunctionMode):
    """Mode that replaces our ops, and additions that onnxscript would drop, while a model is traced in its block."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the replacement of a function, or the function itself."""
        kwargs = kwargs or {}
        if func in _ADDITIONS and not kwargs and isinstance(args[1], float) and 0 < abs(args[1]) <= _TAKEN_FOR_ZERO:
            return (args[0] * _SCALE + args[1] * _SCALE) / _SCALE
        return LOWERED.get(func, func)(*args, **kwargs)
