"""Print the tables of docs/scaling.md: `python docs/scaling.py measured | estimated | data`."""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pc_ewa.benchmark.data import Size, write
from pc_ewa.benchmark.memory import peak_of
from pc_ewa.config import load_experiment
from pc_ewa.data import Clouds, read_hdf5
from pc_ewa.data.digest import digest
from pc_ewa.ewa import upcycle
from pc_ewa.flops import flops_of
from pc_ewa.models import create_model
from pc_ewa.train.batches import Batches

# The arithmetic rests on these, and on nothing measured. H100 SXM: NVIDIA's data sheet; the rest are assumptions.
PEAK = 989e12  # FLOP/s of dense bf16
SHARE = 0.35  # of the peak that a training step reaches
HBM = 3.35e12 * 0.8  # bytes/s
NVLINK = 450e9 * 0.8  # bytes/s of one GPU in one direction, within a host
NETWORK = 50e9 * 0.8  # bytes/s of one GPU between hosts: 400 Gbit/s each
LATENCY = 5e-6  # seconds of one step of a ring or tree, for each bucket of gradients
BUCKET = 25e6  # bytes, as DistributedDataParallel has it
PER_GPU = (32, 256)  # samples of 1,024 points
GPUS_PER_HOST = 8


class Model(NamedTuple):
    """Parameters while training, and in experts; FLOPs of the forward pass of one sample."""

    name: str
    parameters: int
    in_experts: int
    flops: float


def models() -> list[Model]:
    """Count the official classifier, dense and with experts in every second and in all layers."""
    found = []
    for experts, layers in ((1, ""), (2, "every-2"), (4, "every-2"), (8, "every-2"), (4, "all"), (8, "all")):
        model = create_model("point_mae_classifier", num_classes=40).eval()
        with torch.no_grad():
            flops = flops_of(partial(model, torch.rand(1, 1024, 3)))  # experts deal the same tokens: same FLOPs
        if experts > 1:
            upcycle(model, num_experts=experts, layers=layers)
        in_experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        name = f"{experts} experts, {layers}" if experts > 1 else "dense"
        total = sum(p.numel() for p in model.parameters())
        found.append(Model(name, total, in_experts, flops))
    return found


def all_reduce_seconds(size: float, hosts: int) -> float:
    """Seconds to sum `size` bytes over all GPUs: reduced within hosts, each eighth between them, gathered within."""
    ring = (GPUS_PER_HOST - 1) / GPUS_PER_HOST
    seconds = 2 * ring * size / NVLINK
    if hosts > 1:
        seconds += 2 * (hosts - 1) / hosts * size / GPUS_PER_HOST / NETWORK
    steps = 2 * (GPUS_PER_HOST - 1) + 2 * math.ceil(math.log2(hosts))
    return seconds + math.ceil(size / BUCKET) * steps * LATENCY


def estimated() -> list[list[str]]:
    """Compute a row for each model and number of hosts."""
    rows = []
    for model in models():
        update = (16 + 12) * model.parameters / HBM  # AdamW reads weight, gradient, two moments; writes three
        update += 2 * 4 * model.in_experts / HBM  # averaging reads and writes the experts
        for gpus in (GPUS_PER_HOST, 32 * GPUS_PER_HOST):
            wait = all_reduce_seconds(4 * model.parameters, gpus // GPUS_PER_HOST)
            figures = [f"{4 * model.parameters / 1e6:.0f} MB", f"{update * 1e3:.2f}", f"{wait * 1e3:.1f}"]
            figures.append(f"{16 * model.parameters / 1e9:.2f} / {16 * model.parameters / gpus / 1e9:.3f} GB")
            for samples in PER_GPU:
                compute = 3 * model.flops * samples / (PEAK * SHARE)  # backward is two forwards
                alone = compute + update
                worst = alone / (alone + wait)
                best = alone / (alone + max(0.0, wait - compute * 2 / 3))  # hidden behind the backward pass
                figures.append(f"{compute * 1e3:.1f} ms: {worst:.0%} to {best:.0%}")
            rows.append([model.name, f"{gpus}", f"{model.parameters / 1e6:.1f} M", *figures])
    return rows


def measured(config: str, steps: int, rounds: int) -> list[list[str]]:
    """Train on 1, 2 and 4 processes of one thread each, in turn; keep the best of the rounds."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for processes in rates:
                output = Path(folder) / f"{turn}-{processes}"
                command = [sys.executable, "-m", "pc_ewa.train.launch", "--standalone", f"--nproc-per-node={processes}"]
                command += ["-m", "pc_ewa", "train", config, f"output={output}", "device=cpu", f"train.steps={steps}"]
                command += ["wandb=null", "data.val_fraction=0", "train.eval_every=1000"]
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
                rates[processes].append(max(line["samples_per_second"] for line in lines if "loss" in line))
    one = max(rates[1])
    cores = os.cpu_count() or 1
    return [
        [
            f"{n}",
            f"{max(r):.1f}",
            f"{max(r) / one:.2f}x",
            f"{max(r) / one / n:.0%}",
            f"{max(r) / one / min(n, cores):.0%}",
        ]
        for n, r in rates.items()
    ]


def data(path: Path, shapes: int) -> list[list[str]]:
    """Measure a converted file of shapes of 1,024 points, which is made first if it is not there."""
    if not path.exists():
        write(path, Size(shapes, 1024))
    rows = [["file", f"{path.stat().st_size / 1e9:.2f} GB"]]
    opened: list[Clouds] = []
    for temperature in ("cold", "warm"):
        if temperature == "cold":
            forget(path)
        opened.clear()
        cost = timed(lambda: opened.extend(read_hdf5(path, name, name="large") for name in ("train", "test")))
        rows.append([f"opening both splits, {temperature}", str(cost)])
    train, test = opened
    indices = sum(c.labels.nbytes + (c.rows.nbytes if c.rows is not None else 0) for c in opened)
    names = sum(sys.getsizeof(name) for c in opened for name in c.shape_names or ())
    rows.append(["labels and positions of all shapes", f"{indices / 1e6:.0f} MB"])
    rows.append(["names of all shapes", f"{names / 1e6:.0f} MB"])
    forget(path)
    for temperature in ("cold", "warm"):
        cost = timed(lambda: digest({"train": train, "test": test}))
        rows.append([f"digest of both splits, {temperature}", str(cost)])
    rows.append(["digest in a checkpoint", f"{len(json.dumps(digest({'train': train, 'test': test})))} bytes"])
    rows.append(["cutting off a validation part", str(timed(lambda: train.split_validation(0.1, 0)))])
    experiment = load_experiment("official_size", ["device=cpu"])
    batches = Batches(train, experiment, 1, torch.device("cpu"))
    rows.append(["the first batch: the order of an epoch is drawn", str(timed(lambda: batches.draw(0, 0)))])
    for temperature in ("cold", "warm"):
        if temperature == "cold":
            forget(path)
        first = 1 if temperature == "cold" else 101
        times = [timed(lambda step=step: batches.draw(step % 100, 0)) for step in range(first, first + 99)]
        rate, core = (1 / statistics.median(getattr(cost, key) for cost in times) for key in ("seconds", "on_core"))
        slowest = max(cost.seconds for cost in times) * 1e3
        told = f"{rate:.0f} a second ({core:.0f} of a whole core), slowest {slowest:.0f} ms"
        rows.append([f"batches of {experiment.train.batch_size}, {temperature}", told])
    return rows


def forget(path: Path) -> None:
    """Have the system drop the pages of a file, so that the next read is from the disk."""
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Cost(NamedTuple):
    """Seconds that passed, those of them on a core, and MB of peak memory beyond those before."""

    seconds: float
    on_core: float
    peak: float

    def __str__(self) -> str:
        """Return them in words."""
        return f"{self.seconds:.2f} s ({self.on_core:.2f} s on a core), {self.peak:.0f} MB"


def timed(call: Callable[[], object]) -> Cost:
    """Call, and return the cost."""
    began, core = time.perf_counter(), time.process_time()
    peak = peak_of(call)
    return Cost(time.perf_counter() - began, time.process_time() - core, peak)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


ESTIMATED = ["model", "GPUs", "parameters", "gradients", "update and averaging, ms", "all-reduce, ms"]
ESTIMATED += ["weights, gradients, AdamW: whole / FSDP2", *(f"compute and efficiency, {n} a GPU" for n in PER_GPU)]
MEASURED = ["processes", "samples/s", "speed-up", "efficiency a process", "efficiency a core"]


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure or compute, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measured", "estimated", "data"))
    parser.add_argument("--config", default="quickstart", help="measured: the experiment")
    parser.add_argument("--steps", type=int, default=30, help="measured: of each run")
    parser.add_argument("--rounds", type=int, default=3, help="measured: runs of each number of processes")
    parser.add_argument("--file", type=Path, default=Path("large.h5"), help="data: where the shapes are, or go")
    parser.add_argument("--shapes", type=int, default=1_000_000, help="data: how many to make")
    options = parser.parse_args(arguments)
    if options.what == "estimated":
        print(table(ESTIMATED, estimated()))
    elif options.what == "measured":
        print(table(MEASURED, measured(options.config, options.steps, options.rounds)))
    else:
        print(table(["", ""], data(options.file, options.shapes)))


if __name__ == "__main__":
    main()
