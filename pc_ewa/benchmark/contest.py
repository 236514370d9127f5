"""Contenders that do the same work, timed side by side: rounds in rotating order, medians, paired ratios."""

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

SLOW = 2.0  # seconds a call: more than that, and three rounds must do
SLOW_ROUNDS = 3
BURST = 0.05  # seconds: quick calls are repeated for so long, and their median counts
PAUSE = 0.25  # seconds: OpenMP threads go on spinning for up to 0.2 after their work, on the cores of whoever is next


class Verdict(NamedTuple):
    """A judgement: `exact` is True for the exact answer, `note` is the text for the table."""

    exact: bool
    note: str


class Contender(NamedTuple):
    """One way to do the work.

    `call` is timed, `finish` (not timed) brings its result into the form that is judged. `pip` is the package it
    comes from, if it is not ours.
    """

    name: str
    call: Callable[[], Any]
    finish: Callable[[Any], Any] = lambda result: result
    pip: str = ""
    peer: bool = True


@dataclass
class Score:
    """The result of one contender: seconds by round, and the judgement or the problem that stopped it."""

    contender: Contender
    seconds: dict[int, float] = field(default_factory=dict)
    verdict: Verdict | None = None  # none if it failed
    problem: str = ""
    guess: float = 0.0

    @property
    def median(self) -> float:
        """Return the median over the rounds, in milliseconds per call."""
        return statistics.median(self.seconds.values()) * 1e3

    def ratio(self, other: "Score") -> float:
        """Return its time divided by that of `other`: the median over the rounds that both ran in."""
        return statistics.median(self.seconds[i] / other.seconds[i] for i in self.seconds if i in other.seconds)


def compete(
    contenders: Sequence[Contender],
    rounds: int,
    device: torch.device,
    judge: Callable[[Any], Verdict] = lambda result: Verdict(True, ""),
    pause: float = PAUSE,
) -> list[Score]:
    """Judge each contender by its first result, then time them all, round by round."""
    scores = [_introduce(contender, device, judge) for contender in contenders]
    running = [score for score in scores if not score.problem]
    for number in progress(range(rounds), "timing"):
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
    """Return two contenders: our op by default, and on the reference backend, which costs a few microseconds more."""

    def reference() -> Any:
        with ops_backend("reference"):
            return call()

    return [Contender(OURS, call, peer=False), Contender(REFERENCE, reference, peer=False)]


def synchronize(device: torch.device) -> None:
    """Wait until the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _introduce(contender: Contender, device: torch.device, judge: Callable[[Any], Verdict]) -> Score:
    """Run a contender for the first time, when it may compile; then again, to know how long it takes."""
    score = Score(contender)
    try:
        score.verdict = judge(contender.finish(contender.call()))
        score.guess = _seconds(contender, device)
    except Exception as error:  # whatever a library may raise: the others go on
        text = " ".join(str(error).split())
        score.problem = f"{type(error).__name__}: {text[:120]}"
    return score


def _burst(score: Score, device: torch.device) -> float:
    """Return seconds per call: the median over a burst of calls. Quick calls warm the caches once before."""
    if score.guess < BURST:
        _seconds(score.contender, device)
    calls = max(1, min(100, round(BURST / max(score.guess, 1e-6))))
    return statistics.median(_seconds(score.contender, device) for _ in range(calls))


def _seconds(contender: Contender, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    contender.call()
    synchronize(device)
    return time.perf_counter() - began
