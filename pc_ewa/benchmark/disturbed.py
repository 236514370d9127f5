"""Commands in processes of their own, and toy runs that are killed at any moment or watched for minutes."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pc_ewa.data import write_hdf5

# The server of forks has imported all that commands need, so that a child begins at once.
_IMPORTED = ["torch._dynamo", "safetensors.torch", "pc_ewa.inference", "pc_ewa.data.own_files", "pc_ewa.train.run"]
_IMPORTED += ["pc_ewa.cli.train", "pc_ewa.cli.evaluate", "pc_ewa.cli.merge", "pc_ewa.benchmark.reliability"]

# What differs from one run of the same experiment to the next.
_UNEQUAL = ("seconds", "output", "peak_memory", "samples_per_second")

_CONFIG = """\
device: cpu
data: {{name: hdf5, path: {data}, num_points: 48}}
model:
  {{name: point_mae_classifier, dim: 16, depth: 2, num_heads: 2, num_groups: 4, group_size: 8, encoder_width: 8}}
ewa: {{num_experts: 2}}
train: {{steps: {steps}, batch_size: 8, save_every: 3, eval_every: 2}}
wandb: {{mode: disabled}}
"""


class Whole(NamedTuple):
    """An undisturbed run: its folder, how long its process took, and how many changes of files it made."""

    folder: Path
    seconds: float
    changes: int


class Ended(NamedTuple):
    """A run that was killed and went on: its exit code, if it was killed twice, and attempts that came too late."""

    run: Path
    exit_code: int | None
    twice: bool
    not_counted: int


class Toy:
    """A toy dataset of random clouds and an experiment on it, in a folder.

    Args:
        folder: gets everything.
        steps: how many optimizer steps a run takes.
    """

    def __init__(self, folder: Path, steps: int = 12) -> None:
        self.folder, self.data, self.config = folder, folder / "toy.h5", folder / "toy.yaml"
        points = np.random.RandomState(0).standard_normal((36, 64, 3))
        split = [0] * 24 + [1] * 12
        write_hdf5(self.data, points, [i % 3 for i in range(36)], ["ball", "box", "ring"], up_axis="y", split=split)
        self.config.write_text(_CONFIG.format(data=self.data, steps=steps), encoding="utf-8")

    def train(self, run: Path, *overrides: str, deadly: int = 0) -> ForkServerProcess:
        """Start training; SIGKILL comes right before the change of files number `deadly`, if that is above 0."""
        arguments = ["train", str(self.config), f"output={run}", *overrides]
        return start(_call, arguments, run.with_name(f"{run.name}.changes"), deadly, printed=run.with_suffix(".log"))

    @cached_property
    def whole(self) -> Whole:
        """The undisturbed run."""
        run = self.folder / "whole"
        start(os.getpid, printed=run.with_suffix(".log")).join()  # the imports of the server of forks are not counted
        begin = time.perf_counter()
        process = self.train(run)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"the toy run fails:\n{run.with_suffix('.log').read_text()}")
        changes = len((self.folder / "whole.changes").read_text())
        return Whole(run, time.perf_counter() - begin, changes)


def start(call: Callable[..., object], *arguments: object, printed: Path) -> ForkServerProcess:
    """Call a function in a fork of a process that has imported everything; what it prints is added to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=_redirected, args=(printed, call, *arguments))
    process.start()
    return process


def kill(toy: Toy, trials: int, seed: int) -> dict[str, Any]:
    """Kill runs with SIGKILL, start them again, and compare what they leave with the undisturbed run.

    Half of the kills come at moments drawn evenly from the time that a run takes, half right before a drawn change of
    files (opening for writing, renaming, linking, removing). Every third run is killed a second time. Runs that had
    ended before the moment are not counted, and drawn again.
    """
    expected = contents(toy.whole.folder)
    with ThreadPoolExecutor(4) as pool:  # processes that wait for the disk leave time for others
        ended = list(pool.map(lambda number: _kill_one(toy, number, random.Random(f"{seed} {number}")), range(trials)))
    differing = []
    for number, one in enumerate(ended):
        found = contents(one.run) if one.exit_code == 0 else {"exit code": one.exit_code}
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if wrong:
            names = sorted(set(found.get("checkpoints", [])) ^ set(expected["checkpoints"]))
            differing.append(
                f"trial {number}, {'aimed' if number % 2 else 'at random'}: {', '.join([*wrong[:5], *names])}"
            )
    return {
        "trials": trials,
        "identical": trials - len(differing),
        "aimed": trials // 2,
        "at_random": trials - trials // 2,
        "killed_twice": sum(one.twice for one in ended),
        "not_counted": sum(one.not_counted for one in ended),
        "compared": len(expected),
        "differing": differing,
    }


def contents(run: Path) -> dict[str, Any]:
    """Return all that a finished run holds: names of files, each leaf of its checkpoints, metrics and summary."""
    found: dict[str, Any] = {"files": sorted(os.listdir(run)), "checkpoints": sorted(os.listdir(run / "checkpoints"))}
    for path in sorted((run / "checkpoints").glob("[!.]*.pt")):
        found.update(leaves(torch.load(path, weights_only=True), path.name))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found.update(leaves([json.loads(line) for line in lines], "metrics.jsonl"))
    found.update(leaves(json.loads((run / "summary.json").read_text(encoding="utf-8")), "summary.json"))
    return found


def leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield what is nested in dicts and lists with the path to it; of a tensor its kind, shape and bytes."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _UNEQUAL:
                yield from leaves(inner, f"{key}/{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{key}/{i}")
    elif isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield key, (str(value.dtype), tuple(value.shape), data)
    else:
        yield key, repr(value)  # NaN equals itself


def soak(toy: Toy, minutes: float) -> dict[str, Any]:
    """Train for minutes, with validation and saving every few steps, and watch what the process holds.

    What is measured each second after the first minute (or third, of a shorter run) is cut in three parts. The medians
    of the last are compared with those of the first.
    """
    process = toy.train(toy.folder / "soaked", "train.steps=100000000", "train.save_every=20")
    begin, seconds = time.monotonic(), minutes * 60
    weights: list[tuple[int, int, int]] = []
    while (passed := time.monotonic() - begin) < seconds and process.is_alive():
        if passed > min(60, seconds / 3):
            weights.append(_weigh(process))
        time.sleep(min(1, seconds / 60))
    process.terminate()
    process.join()
    lines = (toy.folder / "soaked" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    third = len(weights) // 3
    result: dict[str, Any] = {"minutes": minutes, "exit_code": process.exitcode, "steps": json.loads(lines[-1])["step"]}
    for name, values in zip(("memory", "files", "threads"), zip(*weights, strict=True), strict=True):
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        result[name] = {"first": first, "last": last, "most": max(values)}
    return result


def _kill_one(toy: Toy, number: int, draw: random.Random) -> Ended:
    """Kill a run, a third of them once more, and let it go on to its end."""
    aimed = number % 2 == 1
    for attempt in range(100):
        run = toy.folder / f"killed-{number}-{attempt}"
        if _killed(toy, run, draw, aimed):
            twice = number % 3 == 0 and _killed(toy, run, draw, not aimed)
            process = toy.train(run)
            process.join()
            return Ended(run, process.exitcode, twice, attempt)
    raise RuntimeError("100 runs in a row had ended before the kill")


def _killed(toy: Toy, run: Path, draw: random.Random, aimed: bool) -> bool:
    """Start a run and kill it; return False if it had ended before."""
    process = toy.train(run, deadly=draw.randint(1, toy.whole.changes) if aimed else 0)
    process.join(None if aimed else draw.uniform(0, toy.whole.seconds))
    if not aimed:
        process.kill()
        process.join()
    return process.exitcode == -signal.SIGKILL


def _weigh(process: ForkServerProcess) -> tuple[int, int, int]:
    """Return resident memory in bytes, and how many files and threads a process has."""
    home = Path(f"/proc/{process.pid}")
    status = dict(re.findall(r"^(\w+):\s+(\d+)", (home / "status").read_text(), re.MULTILINE))
    return int(status["VmRSS"]) * 1024, len(os.listdir(home / "fd")), int(status["Threads"])


def _redirected(printed: Path, call: Callable[..., object], *arguments: object) -> None:
    """Begin a process: what it prints goes to a file, and it has one thread."""
    descriptor = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    torch.set_num_threads(1)
    call(*arguments)


def _call(arguments: list[str], changes: Path, deadly: int) -> None:
    """Run a command; a byte for each change of files goes to `changes`, and SIGKILL comes before a chosen one."""
    from pc_ewa.cli import main

    count = 0
    counted = os.open(changes, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)

    def hook(event: str, told: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(told[1], str) and told[1][0] in "wax"
        if writes or event in ("os.rename", "os.link", "os.remove", "os.mkdir"):
            count += 1
            if count == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.write(counted, b".")

    sys.addaudithook(hook)
    sys.exit(main(arguments))
