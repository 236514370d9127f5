"""ShareRate: the strength of averaging after a step, as a pure function of the step and its learning rate."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "lr"]


@dataclass(frozen=True)
class ShareRate:
    """The share rate β after each optimizer step. The other arguments are those of `ExpertAverager`.

    Args:
        peak: the largest β.
        num_experts: N, the smallest number of experts of a mixture, for schedule "lr".

    Raises:
        ValueError: an impossible value.
    """

    peak: float
    schedule: Schedule
    total_steps: int | None
    ramp: float
    start: float
    stop: float
    alpha: float | None
    power: int
    num_experts: int

    def __post_init__(self) -> None:
        """Check the values, except for the peak."""
        if self.schedule not in ("constant", "linear", "cosine", "lr"):
            raise ValueError(f"schedule={self.schedule!r}; choose 'constant', 'linear', 'cosine' or 'lr'")
        always = self.schedule in ("constant", "lr") and (self.start, self.stop) == (0.0, 1.0)
        if self.total_steps is None and not always:
            raise ValueError(f"schedule={self.schedule!r} with start={self.start}, stop={self.stop} needs total_steps")
        if self.total_steps is not None and not (isinstance(self.total_steps, Integral) and self.total_steps >= 1):
            raise ValueError(f"total_steps={self.total_steps!r}; it must be an integer of at least 1")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"start={self.start}, stop={self.stop}; they must satisfy 0 <= start < stop <= 1")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp={self.ramp}; it must be above 0 and at most 1")
        if self.power not in (1, 2):
            raise ValueError(f"power={self.power!r}; choose 1 or 2")
        if self.schedule == "lr" and not (self.alpha is not None and 0 < self.alpha < math.inf):
            raise ValueError(
                f"alpha={self.alpha!r} with schedule='lr'; give the learning rate at which the experts would be merged "
                "fully, such as 1.5 times the peak of training"
            )
        if self.schedule != "lr" and self.alpha is not None:
            raise ValueError(
                f"alpha={self.alpha!r} with schedule={self.schedule!r}; leave it out, or set schedule='lr'"
            )

    def at(self, step: int, lr: float | None = None) -> float:
        """Return β for the averaging after optimizer step `step`, counted from 0, at learning rate `lr`.

        Raises:
            ValueError: the schedule is "lr" and no learning rate is given.
        """
        if not self._within_window(step):
            return 0.0
        if self.schedule == "lr":
            return self._following(lr)
        if self.schedule == "constant" or self.total_steps is None:
            return self.peak
        begin, end = self._window(self.total_steps)
        # `step + 1` steps are done when the averaging runs. With `step` the last one would miss the full rate.
        progress = min(1.0, (step + 1 - begin) / max(1.0, self.ramp * (end - begin)))
        return self.peak * (progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)

    def _window(self, total_steps: int) -> tuple[int, int]:
        return round(self.start * total_steps), round(self.stop * total_steps)

    def _within_window(self, step: int) -> bool:
        if self.total_steps is None:
            return True
        begin, end = self._window(self.total_steps)
        # With stop=1 the window has no end: training beyond `total_steps` keeps the full rate, and does not suddenly
        # stop averaging.
        return step >= begin and (step < end or self.stop == 1)

    def _following(self, lr: float | None) -> float:
        """Return the β for which γ = min(γ_max, (lr / alpha)^power), where γ = β N/(N-1)."""
        if lr is None or self.alpha is None:
            raise ValueError("schedule='lr' needs the learning rate of the step; attach(optimizer), or step(lr=...)")
        # β = γ (N-1)/N rises with γ, so the smaller γ has the smaller β.
        limit = (self.num_experts - 1) / self.num_experts
        return min(self.peak, limit * (lr / self.alpha) ** self.power)
