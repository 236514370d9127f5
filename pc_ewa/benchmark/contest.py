"""Timing of contenders that do the same work: rounds in rotating order, medians, ratios paired by round."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from pc_ewa.progress import progress

OURS = "ours"
REFERENCE = "ours, reference (plain torch)"

SLOW = 2.0  # seconds: a contender whose call takes longer runs in SLOW_ROUNDS rounds only
SLOW_ROUNDS = 3
BURST = 0.05  # seconds: shorter calls are repeated for this time, and their median counts
# Seconds before each timing. OpenMP threads spin for up to 0.2 s after their work, and would slow the next contender.
PAUSE = 0.25


class Verdict(NamedTuple):
    """The verdict on a result.

    Attributes:
        exact: True for the exact result.
        note: the text for the table.
    """

    exact: bool
    note: str


class Contender(NamedTuple):
    """One implementation of the work.

    Attributes:
        name: for the table.
        call: the timed function.
        finish: converts the result of `call` to the form that is judged. It is not timed.
        pip: the package of the implementation, empty for ours and for torch.
        peer: False for our implementations.
    """

    name: str
    call: Callable[[], Any]
    finish: Callable[[Any], Any] = lambda result: result
    pip: str = ""
    peer: bool = True


@dataclass
class Score:
    """The result of one contender.

    Attributes:
        contender: the contender.
        seconds: seconds per call, by round.
        verdict: on its first result. None if it failed.
        problem: the error that stopped it, empty if there was none.
        guess: seconds of its second call, which decide the number of rounds and repetitions.
    """

    contender: Contender
    seconds: dict[int, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    problem: str = ""
    guess: float = 0.0

    @property
    def median(self) -> float:
        """Median over the rounds, in milliseconds per call."""
        return statistics.median(self.seconds.values()) * 1e3

    def ratio(self, other: "Score") -> float:
        """Return its time divided by that of `other`: the median over the rounds in which both ran."""
        # Ratios within a round cancel a drift in the speed of the machine, which a ratio of medians would not.
        return statistics.median(self.seconds[i] / other.seconds[i] for i in self.seconds if i in other.seconds)


def compete(
    contenders: Sequence[Contender],
    rounds: int,
    device: torch.device,
    judge: Callable[[Any], Verdict] = lambda result: Verdict(True, ""),
    pause: float = PAUSE,
) -> list[Score]:
    """Judge each contender by its first result, then time all of them round by round."""
    scores = [_introduce(contender, device, judge) for contender in progress(contenders, "first calls")]
    running = [score for score in scores if not score.problem]
    for number in progress(range(rounds), "timing"):
        # Rotate the order: each contender then runs after each other one, with its caches and its heat.
        first = number % max(1, len(running))
        for score in running[first:] + running[:first]:
            if number < SLOW_ROUNDS or score.guess <= SLOW:
                time.sleep(pause)
                score.seconds[number] = _burst(score, device)
    return scores


@contextmanager
def ops_backend(name: str) -> Iterator[None]:
    """Run our ops on one backend inside a `with` block."""
    before = os.environ.get("PC_EWA_OPS")
    os.environ["PC_EWA_OPS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["PC_EWA_OPS"]
        else:
            os.environ["PC_EWA_OPS"] = before


def ours(call: Callable[[], Any]) -> list[Contender]:
    """Return two contenders: our op on the default backend, and on the reference backend."""

    def reference() -> Any:
        # Setting the backend is timed too, but takes a few microseconds only.
        with ops_backend("reference"):
            return call()

    return [Contender(OURS, call, peer=False), Contender(REFERENCE, reference, peer=False)]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _introduce(contender: Contender, device: torch.device, judge: Callable[[Any], Verdict]) -> Score:
    """Run a contender twice: the first call may compile and is judged, the second one is timed."""
    score = Score(contender)
    try:
        score.verdict = judge(contender.finish(contender.call()))
        score.guess = _seconds(contender, device)
    except Exception as error:  # libraries raise errors of any class; the other contenders continue
        text = " ".join(str(error).split())
        score.problem = f"{type(error).__name__}: {text[:120]}"
    return score


def _burst(score: Score, device: torch.device) -> float:
    """Return seconds per call: the median over a burst of calls."""
    # Quick calls would be dominated by caches that other contenders have filled: call once before.
    if score.guess < BURST:
        _seconds(score.contender, device)
    calls = max(1, min(100, round(BURST / max(score.guess, 1e-6))))
    return statistics.median(_seconds(score.contender, device) for _ in range(calls))


def _seconds(contender: Contender, device: torch.device) -> float:
    # Kernels of a GPU run asynchronously: wait before the clock starts, and again before it stops.
    synchronize(device)
    began = time.perf_counter()
    contender.call()
    synchronize(device)
    return time.perf_counter() - began
