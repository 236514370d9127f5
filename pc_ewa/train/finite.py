"""Gradients that are not finite: they reach no weight, and on a GPU nobody waits to find out."""

import math

import torch
from torch import Tensor, nn

from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.ops.checks import NotFiniteError
from pc_ewa.train.distributed import least_of_all


class GradientGuard:
    """Takes optimizer steps with finite gradients only.

    At once: the norm is read after each backward, which on a GPU waits for all work queued so far. Deferred: the norm
    stays on the device, as `found_inf` of the fused optimizer, which then leaves weights and moments as they are; so it
    does in all later steps, until `found` tells what was found.

    Args:
        optimizer: AdamW, fused.
        device: of the gradients.
        deferred: leave the norms on the device.

    Attributes:
        coordinates: deferred: the flag for `pc_ewa.ops.checks.noting_in`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, deferred: bool) -> None:
        self.optimizer, self.device, self.deferred = optimizer, device, deferred
        self.coordinates: Tensor | None = None
        if deferred:
            self.coordinates = torch.zeros((), dtype=torch.bool, device=device)
            # Of the first bad step: its number from 1, loss and norm; 0 while there is none.
            self._first = torch.zeros(3, dtype=torch.float64, device=device)
            self._found_inf = torch.zeros((), device=device)
            optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    def step(self, norm: Tensor, loss: Tensor, number: int) -> None:
        """Step the optimizer, unless the gradients are not finite.

        Args:
            norm: of all gradients, on all processes the same.
            loss: of the step, for the message.
            number: of the step, from 1.

        Raises:
            NotFiniteError: a norm that is not finite, if it is read at once.
        """
        if self.coordinates is None:
            if not math.isfinite(norm.item()):
                raise NotFiniteError(describe(loss.item(), norm.item()))
        else:
            bad = ~norm.isfinite() | self.coordinates
            this = torch.stack([torch.full_like(self._first[0], number), loss.double(), norm.double()])
            self._first.copy_(torch.where(bad & (self._found_inf == 0), this, self._first))
            self._found_inf.logical_or_(bad)
        self.optimizer.step()

    def found(self) -> tuple[int, str] | None:
        """Wait for the device, and return the first bad step of any process, from 1, with a few words on it; or None.

        Of gradients that are read at once there is nothing to find.
        """
        if not self.deferred:
            return None
        step, loss, norm = self._first.tolist()
        first = least_of_all(int(step) or 2**62, self.device)
        if first == 2**62:
            return None
        cause = "" if not math.isfinite(norm) else ", and a cloud with NaN or inf, here or in another process"
        return first, f"{describe(loss, norm)}{cause}"


def can_defer(model: nn.Module, device: torch.device) -> bool:
    """Return True where to read a norm is to wait for the device, and the optimizer takes a flag, as none of shards."""
    return device.type == "cuda" and not is_sharded(model)


def describe(loss: float, norm: float) -> str:
    """Describe a step by its numbers."""
    return f"loss {loss:.4g}, gradient norm {norm:.4g}"
