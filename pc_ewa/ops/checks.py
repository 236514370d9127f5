"""Checks of the arguments of all ops: shapes and types at the call, values where the op runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# The flags of the active `noting_in` blocks. A global, not a context variable, because autograd runs in other threads.
_notes: list[Tensor] = []


class NotFiniteError(ValueError):
    """Coordinates contain NaN or infinity."""


@contextmanager
def noting_in(note: Tensor | None) -> Iterator[None]:
    """Set a flag for coordinates that are not finite, instead of raising `NotFiniteError`, within a `with` block.

    Raising would have to read the result of the check, which waits for the GPU. Of nested blocks only the innermost
    sets its flag. The ops run on zeros in place of such coordinates, because kernels must not read NaN.
    CUDA graphs captured inside of the block need such a block with the same flag whenever they run. `lengths` are still
    read.

    Args:
        note: the flag, a bool scalar on the device of the clouds. None changes nothing.
    """
    if note is None:
        yield
        return
    _notes.append(note)
    try:
        yield
    finally:
        # By identity: `remove` compares with ==, and of two nested flags that are equal would take the outer one.
        del _notes[next(i for i, flag in enumerate(_notes) if flag is note)]


def check_cloud(name: str, points: Tensor) -> Tensor:
    """Return points (B, N, 3) in float32 or float64. Raise ValueError for a wrong shape or type."""
    if not isinstance(points, Tensor):
        raise ValueError(f"{name} is a {type(points).__name__}; expected a tensor, such as torch.as_tensor({name})")
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"{name} has shape {tuple(points.shape)}; expected (batch, points, 3)")
    if not points.is_floating_point():
        raise ValueError(f"{name} is {points.dtype}; expected floating-point coordinates")
    return points if points.dtype in (torch.float32, torch.float64) else points.float()


def check_pair(x_name: str, x: Tensor, y_name: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check two batches of clouds of the same size, and promote them to one dtype."""
    x, y = check_cloud(x_name, x), check_cloud(y_name, y)
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"{x_name} has a batch of {x.shape[0]}, {y_name} of {y.shape[0]}; they must be equal")
    if x.device != y.device:
        raise ValueError(f"{x_name} is on {x.device}, {y_name} on {y.device}; move one of them")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def check_count(what: str, count: int, points: int) -> None:
    """Raise ValueError unless 1 <= count <= points; `what` reads "k=9 neighbours"."""
    if not 1 <= count <= points:
        raise ValueError(f"{what} in clouds of {points} points; choose 1 to {points}")


def integers(name: str, values: Tensor | Sequence[int] | None, like: Tensor) -> Tensor | None:
    """Return one integer per cloud as int64 (B,), on the device of the clouds `like`. None stays None."""
    if values is None:
        return None
    tensor = torch.as_tensor(values, device=like.device)
    if tensor.numel() == 0:
        tensor = tensor.long()  # torch.as_tensor([]) is float32
    if tensor.shape != like.shape[:1] or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected one integer for each of the "
            f"{like.shape[0]} clouds"
        )
    return tensor.long()


def check_values(name: str, points: Tensor, lengths: Tensor | None = None, needed: int = 1) -> Tensor:
    """Raise ValueError unless every length is in needed..N and every point within them is finite.

    It reads values, which synchronises a GPU, except for those that `noting_in` notes. Call it where the op runs, not
    in traced code.

    Returns:
        The points, with zeros in place of padding and of noted coordinates.
    """
    if points.numel() == 0:
        return points
    if lengths is not None:
        least, most = (int(value) for value in lengths.aminmax())
        if least < needed or most > points.shape[1]:
            wrong = least if least < needed else most
            raise ValueError(f"a length of {wrong} for {name}; it must lie between {needed} and {points.shape[1]}")
        points = points.masked_fill(~valid(points, lengths)[..., None], 0)
    if _notes:
        finite = points.isfinite()
        _notes[-1].logical_or_(~finite.all())
        return torch.where(finite, points, 0)
    # Cheap first: one pass without a temporary tensor. Any NaN or inf makes the difference not finite. So can the
    # difference of two huge finite numbers, so a second test decides.
    low, high = points.aminmax()
    if not bool((high - low).isfinite()) and not bool(points.isfinite().all()):
        cloud = int((~points.isfinite()).flatten(1).any(1).nonzero()[0])
        raise NotFiniteError(f"{name} holds NaN or inf in cloud {cloud} of the batch; remove such points first")
    return points


def valid(points: Tensor, lengths: Tensor) -> Tensor:
    """Return a mask (B, N) of points (B, N, 3), True within the length of their cloud."""
    return torch.arange(points.shape[1], device=points.device) < lengths[:, None]
