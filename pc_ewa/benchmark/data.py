"""The cost of data: opening a large dataset and drawing batches, beside a training step and Point-MAE's loader."""

import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pc_ewa import ops
from pc_ewa.benchmark.grouping import load
from pc_ewa.benchmark.memory import can_weigh, peak_of
from pc_ewa.benchmark.report import Table, Target, as_text, number
from pc_ewa.benchmark.step import timed_step
from pc_ewa.config import Experiment
from pc_ewa.data import Clouds, read_hdf5
from pc_ewa.data.hdf5 import new_file, write_attributes, write_columns
from pc_ewa.progress import progress
from pc_ewa.train.batches import Batches
from pc_ewa.train.distributed import join_world

WORKERS = 8  # of Point-MAE's loader
# Batches per timing of Point-MAE's loader. Its workers prefetch 2 * WORKERS batches, which may be ready when the clock
# starts. Timing twice as many limits their effect.
SUSTAINED = 2 * 2 * WORKERS
CANDIDATES = 1200  # Point-MAE samples 1,024 of this many farthest points


class Size(NamedTuple):
    """Number of clouds in the file, and of points in each. The defaults are those of ModelNet40."""

    shapes: int = 12_311
    points: int = 8192


def measure(rounds: int, size: Size, config: str | Path = "official_size") -> list[Target]:
    """Time opening, drawing and training, print a table, and return the targets."""
    experiment = load(config, torch.device("cpu"), "fp32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.h5"
        write(path, size)
        # A fresh process: this one has memory to reuse, and its peak would be too low.
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            seconds, peak = fresh.apply(open_all, (path,))
        clouds = read_hdf5(path, "train", name="large")
        ours, peer, step = race(clouds, experiment, rounds)
    batch, count = experiment.train.batch_size, experiment.data.num_points
    stored = f"{size.shapes} clouds of {size.points} points ({size.shapes * size.points * 6 / 1e6:.0f} MB, int16)"
    rows = [
        [f"opening {stored}", f"{seconds:.2f} s", ""],
        ["memory for that", "not measured: needs Linux" if peak is None else f"{peak:.0f} MB", ""],
        [f"a batch of {batch} x {count}, drawn and augmented", f"{number(ours)} ms", f"{number(step / ours)}x"],
        [f"the same in the way of Point-MAE, {WORKERS} workers", f"{number(peer)} ms", f"{number(step / peer)}x"],
        [f"a training step of {experiment.model.name}, batch included", f"{number(step)} ms", ""],
    ]
    table = Table(f"Data, {torch.get_num_threads()} threads", ["", "", "faster than a step"], rows)
    print(as_text(table))
    return [
        Target("Opening", seconds, 1, " s", at_most=True),
        Target("A batch, times as fast as a training step", step / ours, 20),
    ]


def write(path: Path, size: Size) -> None:
    """Write a converted file of random points on the unit sphere. Four fifths are for training."""
    random = np.random.default_rng(0)
    with new_file(path) as file:
        write_attributes(file, [str(c) for c in range(40)], ["train", "test"], "y", None)
        data = file.create_dataset("data", (*size, 3), np.int16)
        data.attrs["scale"] = 32767
        for begin in progress(range(0, size.shapes, 256), "writing"):
            some = min(256, size.shapes - begin)
            points = random.standard_normal((some, size.points, 3), dtype=np.float32)
            points /= np.linalg.norm(points, axis=-1, keepdims=True)
            data[begin : begin + some] = (points * 32767).astype(np.int16)
        numbers = np.arange(size.shapes)
        write_columns(file, numbers % 40, (numbers // 40 % 5 == 4).astype(np.uint8), [f"shape_{i}" for i in numbers])


def open_all(path: Path) -> tuple[float, float | None]:
    """Open both splits. Returns the seconds and the peak memory in MB, which is None where it cannot be measured."""
    began = time.perf_counter()

    def both() -> list[Clouds]:
        return [read_hdf5(path, split, name="large") for split in ("train", "test")]

    peak = None
    if can_weigh():
        peak = peak_of(both)
    else:
        both()
    return time.perf_counter() - began, peak


def race(clouds: Clouds, experiment: Experiment, rounds: int) -> tuple[float, float, float]:
    """Time our batch, a batch of Point-MAE's loader and a training step in turn. Returns medians in milliseconds."""
    device = torch.device("cpu")
    batches = Batches(clouds, experiment, 1, device)
    peer = peer_batches(clouds, experiment)
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    with join_world("cpu") as world:
        train = timed_step(experiment, world)
        for number_ in progress(range(rounds + 1), "timing"):
            measured = (
                _seconds(lambda n=number_: batches.draw(n, 0)),
                _seconds(lambda: [next(peer) for _ in range(SUSTAINED)]) / SUSTAINED,
                train(number_),
            )
            if number_:  # the first warms up
                for column, value in zip(times, measured, strict=True):
                    column.append(value)
    ours, theirs, step = (statistics.median(column) * 1e3 for column in times)
    return ours, theirs, step


class PerItem(Dataset[tuple[torch.Tensor, int]]):
    """A dataset that works as Point-MAE's does, one cloud at a time, normalised by numpy. Contains none of its code."""

    def __init__(self, points: NDArray[np.float32], labels: list[int]) -> None:
        self.points, self.labels = points, labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a cloud, centred and scaled to the unit sphere, and its label."""
        points = self.points[index].copy()
        points -= points.mean(0)
        points /= np.sqrt((points**2).sum(1)).max()
        return torch.from_numpy(points), self.labels[index]


def peer_batches(clouds: Clouds, experiment: Experiment) -> Iterator[torch.Tensor]:
    """Yield batches as Point-MAE loads them, without end: workers, FPS, a random subset, ScaleAndTranslate.

    FPS is ours, on the CPU. Point-MAE keeps all clouds in memory, so that at most 1,024 clouds are used here.
    """
    # torch warns about more workers than cores. The number is that of the official config.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    few = clouds.select(range(min(len(clouds), 1024)))
    points, labels = few.batch(range(len(few)))
    loader = DataLoader(
        PerItem(points.numpy(), labels.tolist()),
        experiment.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    count = experiment.data.num_points
    while True:
        for batch, _ in loader:
            chosen = ops.farthest_point_sample(batch, CANDIDATES)[:, np.random.choice(CANDIDATES, count, False)]
            yield augment(ops.gather_points(batch, chosen))


def augment(points: torch.Tensor) -> torch.Tensor:
    """Scale and translate each cloud, in a loop over the batch, as ScaleAndTranslate does."""
    for cloud in points:
        scale, shift = np.random.uniform(2 / 3, 3 / 2, 3), np.random.uniform(-0.2, 0.2, 3)
        cloud.mul_(torch.from_numpy(scale).float()).add_(torch.from_numpy(shift).float())
    return points


def _seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began
