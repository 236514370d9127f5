"""Commands in child processes, and toy runs that are killed at random moments or watched for minutes."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import threading
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

# The fork server imports these once. A forked child then begins at once, and a kill hits the run and not its imports.
_IMPORTED = ["torch._dynamo", "safetensors.torch", "pc_ewa.inference", "pc_ewa.data.own_files", "pc_ewa.train.run"]
_IMPORTED += ["pc_ewa.cli.train", "pc_ewa.cli.evaluate", "pc_ewa.cli.merge", "pc_ewa.benchmark.reliability"]

# Keys that differ between two runs of the same experiment.
_UNEQUAL = ("seconds", "output", "peak_memory", "samples_per_second")

# multiprocessing.Process is not thread-safe: poll() in one thread may reap a child that another thread starts or polls.
_ONE = threading.Lock()

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
    """An undisturbed run: its folder, the seconds of its process, and its number of file changes."""

    folder: Path
    seconds: float
    changes: int


class Ended(NamedTuple):
    """A run that was killed and resumed.

    Attributes:
        run: its folder.
        exit_code: of the resumed process.
        twice: True if it was killed twice.
        not_counted: attempts in which the run had ended before the kill.
    """

    run: Path
    exit_code: int
    twice: bool
    not_counted: int


class Toy:
    """A toy dataset of random clouds and an experiment on it, in a folder.

    Args:
        folder: the folder for dataset, config and runs.
        steps: number of optimizer steps of a run.
    """

    def __init__(self, folder: Path, steps: int = 12) -> None:
        self.folder, self.data, self.config = folder, folder / "toy.h5", folder / "toy.yaml"
        points = np.random.RandomState(0).standard_normal((36, 64, 3))
        split = [0] * 24 + [1] * 12
        write_hdf5(self.data, points, [i % 3 for i in range(36)], ["ball", "box", "ring"], up_axis="y", split=split)
        self.config.write_text(_CONFIG.format(data=self.data, steps=steps), encoding="utf-8")

    def train(self, run: Path, *overrides: str, deadly: int = 0) -> ForkServerProcess:
        """Start training. If `deadly` is above 0, SIGKILL comes right before the file change of that number."""
        arguments = ["train", str(self.config), f"output={run}", *overrides]
        return start(_call, arguments, run.with_name(f"{run.name}.changes"), deadly, printed=run.with_suffix(".log"))

    @cached_property
    def whole(self) -> Whole:
        """The undisturbed run."""
        run = self.folder / "whole"
        # Start and end one child first, so that the imports of the fork server are not in the time of the run.
        start(os.getpid, printed=run.with_suffix(".log")).join()
        begin = time.perf_counter()
        process = self.train(run)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"the toy run fails:\n{run.with_suffix('.log').read_text()}")
        return Whole(run, time.perf_counter() - begin, len((self.folder / "whole.changes").read_text()))


def start(call: Callable[..., object], *arguments: object, printed: Path) -> ForkServerProcess:
    """Start a function in a fork of a process that has imported everything. Its output is appended to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=_redirected, args=(printed, call, *arguments))
    with _ONE:
        process.start()
    return process


def kill(toy: Toy, trials: int, seed: int) -> dict[str, Any]:
    """Kill runs with SIGKILL, start them again, and compare their results with the undisturbed run.

    Half of the kills come at uniformly random moments of a run. The other half come right before a random file change
    (opening for writing, renaming, linking, removing). Every third run is killed a second time. Runs that had ended
    before the kill are not counted, and are drawn again.
    """
    expected = contents(toy.whole.folder)
    # Four at a time: a run often waits for fsync, and leaves the cores to the others.
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda number: _kill_one(toy, number, random.Random(f"{seed} {number}")), range(trials)))
    differing = []
    for number, one in enumerate(ended):
        found: dict[str, Any] = contents(one.run) if one.exit_code == 0 else {"exit code": one.exit_code}
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
    """Return the contents of a finished run: names of files, each leaf of its checkpoints, metrics and summary."""
    found: dict[str, Any] = {"files": sorted(os.listdir(run)), "checkpoints": sorted(os.listdir(run / "checkpoints"))}
    for path in sorted((run / "checkpoints").glob("[!.]*.pt")):
        found.update(leaves(torch.load(path, weights_only=True), path.name))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found.update(leaves([json.loads(line) for line in lines], "metrics.jsonl"))
    found.update(leaves(json.loads((run / "summary.json").read_text(encoding="utf-8")), "summary.json"))
    return found


def leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield the path and value of each leaf of nested dicts and lists. A tensor gives its dtype, shape and bytes."""
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
        yield key, repr(value)  # compare text, as NaN != NaN


def soak(toy: Toy, minutes: float) -> dict[str, Any]:
    """Train for minutes, validating and saving every few steps, and watch memory, open files and threads.

    Samples are taken each second after the first minute, or after the first third of a shorter run. They are cut into
    three parts, and the medians of the last part are compared with those of the first.
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
    """Kill a run, every third one twice, and resume it to its end."""
    aimed = number % 2 == 1
    for attempt in range(100):
        run = toy.folder / f"killed-{number}-{attempt}"
        if _killed(toy, run, draw, aimed):
            twice = number % 3 == 0 and _killed(toy, run, draw, not aimed)
            return Ended(run, _wait(toy.train(run)), twice, attempt)
    raise RuntimeError("100 runs in a row had ended before the kill")


def _killed(toy: Toy, run: Path, draw: random.Random, aimed: bool) -> bool:
    """Start a run and kill it. Returns False if it had ended before."""
    process = toy.train(run, deadly=draw.randint(1, toy.whole.changes) if aimed else 0)
    if not aimed:
        time.sleep(draw.uniform(0, toy.whole.seconds))
        process.kill()
    return _wait(process) == -signal.SIGKILL


def _wait(process: ForkServerProcess) -> int:
    """Wait for a process and return its exit code."""
    # Not join(): it would hold the lock, or poll without it, until this process ends.
    while True:
        with _ONE:
            code = process.exitcode
        if code is not None:
            return code
        time.sleep(0.02)


def _weigh(process: ForkServerProcess) -> tuple[int, int, int]:
    """Return the resident memory in bytes, and the number of open files and threads of a process."""
    home = Path(f"/proc/{process.pid}")
    status = dict(re.findall(r"^(\w+):\s+(\d+)", (home / "status").read_text(), re.MULTILINE))
    return int(status["VmRSS"]) * 1024, len(os.listdir(home / "fd")), int(status["Threads"])


def _redirected(printed: Path, call: Callable[..., object], *arguments: object) -> None:
    """Call a function in this process, with its output in a file and one torch thread."""
    # Redirect the descriptors, not sys.stdout: libraries in C write to these, and a crash too.
    os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644), 1)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    call(*arguments)


def _call(arguments: list[str], changes: Path, deadly: int) -> None:
    """Run a command. Each file change adds a byte to the file `changes`, and SIGKILL comes before a chosen one."""
    from pc_ewa.cli import main

    count, counted = 0, os.open(changes, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)

    def hook(event: str, told: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(told[1], str) and told[1][0] in "wax"
        if writes or event in ("os.rename", "os.link", "os.remove", "os.mkdir"):
            count += 1
            if count == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            # os.write and not open(): that would raise another audit event, and count itself.
            with contextlib.suppress(OSError):
                os.write(counted, b".")

    sys.addaudithook(hook)
    sys.exit(main(arguments))
