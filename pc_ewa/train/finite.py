"""A guard against non-finite gradients. They reach no weight, and on a GPU no step waits for the check."""

import math

import torch
from torch import Tensor, nn

from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.ops.checks import NotFiniteError
from pc_ewa.train.distributed import least_of_all


class GradientGuard:
    """A guard that takes optimizer steps with finite gradients only.

    Immediate mode reads the norm after each backward pass. On a GPU that waits for all queued work. Deferred mode keeps
    the norm on the device, as `found_inf` of the fused optimizer. The optimizer then leaves weights and moments as they
    are, in this and in all later steps, until `found` reads the flag.

    Args:
        optimizer: AdamW, fused.
        device: of the gradients.
        deferred: keep the norms on the device.

    Attributes:
        coordinates: the flag for `pc_ewa.ops.checks.noting_in`. None in immediate mode.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, deferred: bool) -> None:
        self.optimizer, self.device, self.deferred = optimizer, device, deferred
        self.coordinates: Tensor | None = None
        if deferred:
            self.coordinates = torch.zeros((), dtype=torch.bool, device=device)
            # Number (from 1), loss and norm of the first bad step; zeros while there is none.
            self._first = torch.zeros(3, dtype=torch.float64, device=device)
            # AdamW(fused=True) reads this attribute, which torch.amp.GradScaler sets otherwise: 1 makes the kernel skip
            # the step for all parameters, decided on the device.
            self._found_inf = torch.zeros((), device=device)
            optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    def step(self, norm: Tensor, loss: Tensor, number: int) -> None:
        """Step the optimizer, unless the gradients are not finite.

        Args:
            norm: norm of all gradients; the same on all processes.
            loss: loss of the step, for the message.
            number: number of the step, from 1.

        Raises:
            NotFiniteError: a norm that is not finite, in immediate mode.
        """
        if self.coordinates is None:
            if not math.isfinite(norm.item()):
                raise NotFiniteError(describe(loss.item(), norm.item()))
        else:
            # Without a branch in Python: a branch would copy `bad` to the host and wait for the GPU.
            bad = ~norm.isfinite() | self.coordinates
            this = torch.stack([torch.full_like(self._first[0], number), loss.double(), norm.double()])
            self._first.copy_(torch.where(bad & (self._found_inf == 0), this, self._first))
            self._found_inf.logical_or_(bad)
        self.optimizer.step()

    def found(self) -> tuple[int, str] | None:
        """Wait for the device and return the first bad step of any process, from 1, with its description.

        Returns None if all steps were finite, and in immediate mode.
        """
        if not self.deferred:
            return None
        step, loss, norm = self._first.tolist()
        # 2**62 stands for "no bad step", so that the minimum over the processes is the first one.
        first = least_of_all(int(step) or 2**62, self.device)
        if first == 2**62:
            return None
        cause = "" if not math.isfinite(norm) else ", and a cloud with NaN or inf, here or in another process"
        return first, f"{describe(loss, norm)}{cause}"


def can_defer(model: nn.Module, device: torch.device) -> bool:
    """Return True on a GPU, for a model that is not sharded.

    On the CPU reading a norm costs nothing. The fused optimizer does not take `found_inf` with sharded parameters.
    """
    return device.type == "cuda" and not is_sharded(model)


def describe(loss: float, norm: float) -> str:
    """Describe a step by its loss and gradient norm."""
    return f"loss {loss:.4g}, gradient norm {norm:.4g}"
