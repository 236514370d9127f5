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
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from pc_ewa.benchmark.data import Size, write
from pc_ewa.benchmark.memory import peak_of
from pc_ewa.config import load_experiment
from pc_ewa.data import Clouds, read_hdf5
from pc_ewa.data.digest import digest
from pc_ewa.ewa import upcycle
from pc_ewa.models import create_model
from pc_ewa.train.batches import Batches

# The arithmetic rests on these, and on nothing measured. H100 SXM: NVIDIA's data sheet; the rest are assumptions.
PEAK = 989e12  # FLOP/s of dense bf16
SHARE = 0.35  # of the peak that a training step reaches
HBM = 3.35e12 * 0.8  # bytes/s
NVLINK = 450e9 * 0.8  # bytes/s of one GPU in one direction, within a host
NETWORK = 50e9 * 0.8  # bytes/s of one GPU between hosts: 400 Gbit/s each
LATENCY = 20e-6  # seconds of one step of a ring or tree, for each bucket of gradients
BUCKET = 25e6  # bytes, as DistributedDataParallel has it
PER_GPU = 32  # samples of 1,024 points
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
        with FlopCounterMode(display=False) as counter, torch.no_grad():  # experts deal the same tokens: same FLOPs
            model(torch.rand(1, 1024, 3))
        if experts > 1:
            upcycle(model, num_experts=experts, layers=layers)
        in_experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        name = f"{experts} experts, {layers}" if experts > 1 else "dense"
        total = sum(p.numel() for p in model.parameters())
        found.append(Model(name, total, in_experts, counter.get_total_flops()))
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
        compute = 3 * model.flops * PER_GPU / (PEAK * SHARE)  # backward is two forwards
        update = (16 + 12) * model.parameters / HBM  # AdamW reads weight, gradient, two moments; writes three
        averaging = 2 * 4 * model.in_experts / HBM
        alone = compute + update + averaging
        for hosts in (1, 32):
            gradients = 4 * model.parameters
            wait = all_reduce_seconds(gradients, hosts)
            worst = alone / (alone + wait)
            best = alone / (alone + max(0.0, wait - compute * 2 / 3))  # hidden behind the backward pass
            gpus = hosts * GPUS_PER_HOST
            rows.append(
                [
                    model.name,
                    f"{gpus}",
                    f"{model.parameters / 1e6:.1f} M",
                    f"{compute * 1e3:.1f}",
                    f"{(update + averaging) * 1e3:.2f}",
                    f"{gradients / 1e6:.0f} MB",
                    f"{wait * 1e3:.1f}",
                    f"{16 * model.parameters / 1e9:.2f} / {16 * model.parameters / gpus / 1e9:.3f} GB",
                    f"{worst:.0%} to {best:.0%}",
                    f"{gpus * PER_GPU / alone * worst:,.0f}",
                ]
            )
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
        seconds, peak = timed(
            lambda: opened.extend(read_hdf5(path, split, name="large") for split in ("train", "test"))
        )
        rows.append([f"opening both splits, {temperature}", f"{seconds:.2f} s, {peak:.0f} MB"])
    train, test = opened
    indices = sum(c.labels.nbytes + (c.rows.nbytes if c.rows is not None else 0) for c in opened)
    names = sum(sys.getsizeof(name) for c in opened for name in c.shape_names or ())
    rows.append(["labels and positions of all shapes", f"{indices / 1e6:.0f} MB"])
    rows.append(["names of all shapes", f"{names / 1e6:.0f} MB"])
    forget(path)
    for temperature in ("cold", "warm"):
        seconds, _ = timed(lambda: digest({"train": train, "test": test}))
        rows.append([f"digest of both splits, {temperature}", f"{seconds:.2f} s"])
    rows.append(["digest in a checkpoint", f"{len(json.dumps(digest({'train': train, 'test': test})))} bytes"])
    seconds, peak = timed(lambda: train.split_validation(0.1, 0))
    rows.append(["cutting off a validation part", f"{seconds:.2f} s, {peak:.0f} MB"])
    experiment = load_experiment("official_size", ["device=cpu"])
    batches = Batches(train, experiment, 1, torch.device("cpu"))
    seconds, _ = timed(lambda: batches.draw(0, 0))
    rows.append(["the first batch: the order of an epoch is drawn", f"{seconds * 1e3:.0f} ms"])
    for temperature in ("cold", "warm"):
        if temperature == "cold":
            forget(path)
        times = [timed(lambda step=step: batches.draw(step, 0))[0] for step in range(1, 101)]
        rate = 1 / statistics.median(times)
        worst = max(times) * 1e3
        rows.append(
            [f"batches of {experiment.train.batch_size}, {temperature}", f"{rate:.0f} a second, slowest {worst:.0f} ms"]
        )
    return rows


def forget(path: Path) -> None:
    """Have the system drop the pages of a file, so that the next read is from the disk."""
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(call: object) -> tuple[float, float]:
    """Call; return seconds, and MB of peak memory beyond those before."""
    began = time.perf_counter()
    peak = peak_of(call)  # type: ignore[arg-type]
    return time.perf_counter() - began, peak


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


ESTIMATED = ["model", "GPUs", "parameters", "compute, ms", "update and averaging, ms", "gradients", "all-reduce, ms"]
ESTIMATED += ["weights, gradients, AdamW: whole / FSDP2", "efficiency", "samples/s"]
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
