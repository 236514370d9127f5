"""Training steps on a GPU: time, share of the peak, most expensive ops, and synchronisations."""

import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pc_ewa.benchmark.contest import synchronize
from pc_ewa.benchmark.gpu_part import Part
from pc_ewa.benchmark.gpu_plan import Plan, Variant
from pc_ewa.benchmark.report import Table, number
from pc_ewa.flops import flops_of
from pc_ewa.train.compiled import compiled
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.meter import peak_memory, reset_peak_memory
from pc_ewa.train.setup import build

Step = Callable[[int], None]

HEADER = ["", "ms", "host ms", "samples/s", "TFLOP/s", "of peak", "MiB", "first step, s"]
FRAMES = 12  # last frames of a traceback that are kept


def run_steps(part: Part) -> None:
    """Measure the peaks of the device, then time steps without compilation, then profile one variant."""
    peaks = measure_peaks(part.plan)
    rows = [[name, number(value)] for name, value in peaks.items()]
    size = part.plan.matrix
    tables = [Table(f"Peaks measured: products of matrices {size}x{size} in TFLOP/s, a copy in GB/s", ["", ""], rows)]
    part.show(tables, peaks=peaks)
    _time_variants(part, part.plan.eager, peaks)
    if part.left > 15 or part.plan.rehearsal:
        part.show([*part.tables, profile(part.plan, Variant("bf16", None, True))])


def run_compiled(part: Part) -> None:
    """Time steps with compilation."""
    _time_variants(part, part.plan.compiled, measure_peaks(part.plan))


def run_syncs(part: Part) -> None:
    """Count the operations of a step that make the host wait for the device. The goal is none."""
    rows: list[list[str]] = []
    where: dict[str, Any] = {}
    for variant in part.plan.watched:
        try:
            with prepared(part.plan, variant) as step:
                found, trace = synchronisations(step, part.plan)
        except Exception as error:
            _note(part, variant, error)
            continue
        where[variant.name] = {"found": found, "trace": trace}
        rows.append([variant.name, f"{sum(found.values()) / part.plan.steps:.2f}", "; ".join(found) or "-"])
        part.show([Table("Synchronisations in a step", ["", "in a step", "where"], rows)], syncs=where)


@contextmanager
def prepared(plan: Plan, variant: Variant) -> Iterator[Step]:
    """Build a variant, run its warm-up steps, and yield a function that runs further steps.

    The precision of fp32 matrix products is set inside the `with` block only.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if variant.precision == "tf32" else "highest")
    try:
        experiment, world = plan.experiment(variant), World(0, 1, _indexed(plan.device))
        setup = build(experiment, world)
        setup.model.train()
        model = compiled(setup.model, experiment)

        def step(index: int) -> None:
            train_step(setup, experiment, world, model, index)

        # The first step includes compilation. It is timed separately.
        began = time.perf_counter()
        step(0)
        synchronize(plan.device)
        step.first = time.perf_counter() - began  # type: ignore[attr-defined]
        step.batch_size = experiment.train.batch_size  # type: ignore[attr-defined]
        for index in range(1, plan.warmup):
            step(index)
        synchronize(plan.device)
        yield step
        # Steps do not check for NaN on the host. Read the flag once: timings of a failed training would mean nothing.
        if found := setup.guard.found():
            raise RuntimeError(f"step {found[0]}: {found[1]}")
    finally:
        torch.set_float32_matmul_precision(before)
        # Return cached blocks to the driver, so that the peak memory of the next variant is its own.
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()


def timed(step: Step, plan: Plan) -> dict[str, float]:
    """Time consecutive steps, waiting for the device only at the end of each round, as in training.

    Returns:
        `seconds` of a step, and `host_seconds` until the host had queued it, as medians over the rounds. If the two are
        equal, the device waits for the host.
    """
    whole, host = [], []
    for index in range(plan.rounds):
        synchronize(plan.device)
        began = time.perf_counter()
        for place in range(plan.steps):
            step(plan.warmup + index * plan.steps + place)
        queued = time.perf_counter()
        synchronize(plan.device)
        whole.append((time.perf_counter() - began) / plan.steps)
        host.append((queued - began) / plan.steps)
    return {"seconds": statistics.median(whole), "host_seconds": statistics.median(host)}


def synchronisations(step: Step, plan: Plan) -> tuple[Counter[str], list[str]]:
    """Find the lines that make the host wait, by torch's warnings, and the traceback of the first one."""
    if plan.device.type != "cuda":
        return Counter(), []
    seen: Counter[str] = Counter()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            # By default Python shows a warning once per line. Here each occurrence is counted.
            warnings.simplefilter("always")
            for index in range(plan.steps):
                step(plan.warmup + index)
        for warning in caught:
            if "synchronizing CUDA operation" in str(warning.message):
                seen["/".join(warning.filename.split("/")[-3:]) + f":{warning.lineno}"] += 1
        trace: list[str] = []
        # A warning has no traceback. Run one more step with errors in place of warnings to get one.
        if seen:
            torch.cuda.set_sync_debug_mode("error")
            try:
                step(plan.warmup + plan.steps)
            except RuntimeError:
                trace = traceback.format_exc().splitlines()[-2 * FRAMES :]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return seen, trace


def count_flop(plan: Plan, ewa: bool) -> int:
    """Return the number of floating-point operations of the matrix products in a training step."""
    with prepared(plan, Variant("fp32", None, ewa)) as step:
        return flops_of(lambda: step(plan.warmup))


def measure_peaks(plan: Plan) -> dict[str, float]:
    """Measure the peaks of the device: TFLOP/s of matrix products, and GB/s of a copy, counting reads and writes."""
    peaks, size = {}, plan.matrix
    before = torch.get_float32_matmul_precision()
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, before),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        # Random matrices, not zeros: with zeros a GPU draws less power and clocks higher than in training.
        a, b = (torch.randn(size, size, device=plan.device, dtype=dtype) for _ in range(2))
        peaks[name] = 2 * size**3 / _median_seconds(lambda a=a, b=b: a @ b, plan) / 1e12  # type: ignore[misc]
    torch.set_float32_matmul_precision(before)
    source = torch.randn(plan.copied // 4, device=plan.device)
    target = torch.empty_like(source)
    peaks["copy"] = 2 * plan.copied / _median_seconds(lambda: target.copy_(source), plan) / 1e9
    return peaks


def profile(plan: Plan, variant: Variant) -> Table:
    """Return a table of the most expensive ops of a step."""
    cuda = plan.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    steps = 3 if cuda else 1
    with prepared(plan, variant) as step, torch.profiler.profile(activities=kinds) as found:
        for index in range(steps):
            step(plan.warmup + index)
        synchronize(plan.device)
    spent = {
        event.key: ((event.self_device_time_total if cuda else event.self_cpu_time_total) / steps, event.count // steps)
        for event in found.key_averages()
    }
    total = sum(time for time, _ in spent.values())
    most = sorted(spent.items(), key=lambda item: -item[1][0])[:20]
    rows = [[key[:90], f"{time:.0f}", f"{100 * time / total:.1f} %", str(count)] for key, (time, count) in most if time]
    return Table(f"Where a step goes ({variant.name})", ["", "microseconds", "share", "calls"], rows)


def _time_variants(part: Part, variants: tuple[Variant, ...], peaks: dict[str, float]) -> None:
    """Time variants in order while time is left. The last table of the part grows by a row for each."""
    before, rows, results = part.tables, list[list[str]](), list[dict[str, Any]]()
    longest, flop = 0.0, dict[bool, int]()
    for variant in variants:
        # Assume that the next variant takes as long as the longest so far, plus a margin.
        if part.left < 1.3 * longest + 5 and not part.plan.rehearsal:
            part.problem(f"{variant.name}: left out, no time")
            continue
        began = time.monotonic()
        try:
            if variant.ewa not in flop:
                flop[variant.ewa] = count_flop(part.plan, variant.ewa)
            reset_peak_memory(part.plan.device)
            with prepared(part.plan, variant) as step:
                result = timed(step, part.plan)
                first: float = step.first  # type: ignore[attr-defined]
                batch: int = step.batch_size  # type: ignore[attr-defined]
        except Exception as error:
            _note(part, variant, error)
            continue
        longest = max(longest, time.monotonic() - began)
        rate = flop[variant.ewa] / result["seconds"] / 1e12
        memory = peak_memory(part.plan.device) / 2**20
        result |= {**variant._asdict(), "flop": flop[variant.ewa], "first_seconds": first, "batch_size": batch}
        results.append(result | {"memory_mib": memory})
        times = [number(1e3 * result[key]) for key in ("seconds", "host_seconds")]
        share = f"{100 * rate / peaks[variant.precision]:.1f} %"
        rows.append([variant.name, *times, number(batch / result["seconds"]), number(rate), share])
        rows[-1] += [f"{memory:.0f}", number(first)]
        title = f"Training steps of {batch} samples, {flop[variant.ewa] / 1e9:.1f} GFLOP each"
        part.show([*before, Table(title, HEADER, rows)], steps=results, peaks=peaks)


def _median_seconds(call: Callable[[], Any], plan: Plan) -> float:
    seconds = []
    for index in range(3 + 2 * plan.rounds):
        synchronize(plan.device)
        began = time.perf_counter()
        call()
        synchronize(plan.device)
        if index >= 3:  # the first three warm up
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _note(part: Part, variant: Variant, error: Exception) -> None:
    """Record the error that stopped a variant. The other variants continue."""
    traceback.print_exc()
    part.problem(f"{variant.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _indexed(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
