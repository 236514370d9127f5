"""The training loop. Random numbers are a pure function of (seed, step, slot), so that resuming is exact."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.config import Experiment
from pc_ewa.data import describe_change
from pc_ewa.data.digest import Digest
from pc_ewa.errors import CheckpointError, OutputError, Stopped, TrainingError
from pc_ewa.ewa.sharding import local_part
from pc_ewa.ops.checks import NotFiniteError, noting_in
from pc_ewa.progress import bar
from pc_ewa.train.compiled import compiled, compiled_pass
from pc_ewa.train.distributed import (
    World,
    check_replicas,
    gradients_wait,
    least_of_all,
    others_wait,
    parallel_model,
    sync_batchnorm_statistics,
)
from pc_ewa.train.meter import Meter, peak_memory
from pc_ewa.train.objectives import with_balance
from pc_ewa.train.probe import SVMProbe
from pc_ewa.train.run_folder import Checkpoints
from pc_ewa.train.setup import Setup
from pc_ewa.train.sharding import load_model, load_optimizer, whole, whole_state
from pc_ewa.train.signals import first_signal, stop_signals
from pc_ewa.train.tracking import Tracker

LOG_EVERY = 10  # optimizer steps


@dataclass
class Progress:
    """The progress of a run: optimizer steps done, seconds spent on them, and the validations so far."""

    step: int = 0
    seconds: float = 0.0
    last_val: float | None = None
    best_val: float | None = None
    best_step: int | None = None
    peak_memory: int = 0  # bytes
    slots: int | None = None  # micro-batches, see `Batches`; None in files of earlier versions
    meter: dict[str, Any] | None = None  # sums since metrics were last recorded, see `Meter.state`


def refuse_other_data(content: Mapping[str, Any], data: Digest, checkpoints: Checkpoints) -> None:
    """Raise CheckpointError if the run of a checkpoint was trained on other data than these."""
    if change := describe_change(content.get("data"), data):
        raise CheckpointError(
            f"{checkpoints.folder} holds a run on other data: {change}; bring back its data, or begin another run with "
            f"these: output={checkpoints.folder.parent}_2"
        )


def resume(setup: Setup, checkpoints: Checkpoints) -> Progress:
    """Load the newest checkpoint of the run folder, if there is one.

    Raises:
        CheckpointError: a damaged checkpoint, or one of a run with another model or other data.
    """
    content = checkpoints.newest()
    if content is None:
        return Progress()
    refuse_other_data(content, setup.data, checkpoints)
    try:
        load_model(setup.model, content["model"])
        load_optimizer(setup.optimizer, content["optimizer"])
        progress = _progress(content["progress"], setup.total_steps)
        if setup.weight_average:
            setup.weight_average.load(content)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoints.folder} holds another run: {reason}; choose another output") from None
    setup.batches.keep(progress.slots)
    if setup.averager:
        # The averager counts steps by itself, and the share rate depends on them.
        setup.averager.load_state_dict({"steps_done": progress.step})
    return progress


def _progress(content: Mapping[str, Any], total_steps: int) -> Progress:
    """Read the progress in a checkpoint.

    Raises:
        ValueError: numbers that a run of `total_steps` steps cannot have.
    """
    progress = Progress(**content)
    for name in ("step", "best_step"):
        value = getattr(progress, name)
        if not (isinstance(value, int) and 0 <= value <= total_steps) and not (name == "best_step" and value is None):
            raise ValueError(f"{name}={str(value)[:40]} of {total_steps} steps")
    for name in ("seconds", "last_val", "best_val", "peak_memory"):
        value = getattr(progress, name)
        if not isinstance(value, int | float) and not (name.endswith("val") and value is None):
            raise ValueError(f"{name}={str(value)[:40]}")
    if progress.slots is not None and not (isinstance(progress.slots, int) and progress.slots > 0):
        raise ValueError(f"slots={str(progress.slots)[:40]}")
    if progress.meter is not None and not Meter.knows(progress.meter):
        raise ValueError(f"meter={str(progress.meter)[:40]}")
    return progress


def train(
    setup: Setup,
    experiment: Experiment,
    world: World,
    progress: Progress,
    checkpoints: Checkpoints,
    tracker: Tracker,
) -> None:
    """Train from `progress` to the end, with validation and checkpoints.

    Raises:
        Stopped: a stop signal arrived. The state is saved, and the same command resumes from there.
        TrainingError: a loss, gradient or weight that is not finite. Checkpoints written before stay valid.
    """
    parallel = parallel_model(compiled(setup.model, experiment), world)
    eval_every = experiment.train.eval_every * setup.batches.steps_per_epoch
    save_every = experiment.train.save_every or eval_every
    probe_every = experiment.probe.every * setup.batches.steps_per_epoch if experiment.probe else 0
    meter = Meter(progress.meter)
    setup.model.train()
    steps = bar("training", setup.total_steps, done=progress.step, show=world.is_main)
    with steps, stop_signals() as received:
        while progress.step < setup.total_steps:
            began = time.perf_counter()
            meter.add(train_step(setup, experiment, world, parallel, progress.step))
            progress.step += 1
            done = progress.step == setup.total_steps
            logged = progress.step % LOG_EVERY == 0 or done
            if logged or progress.step % eval_every == 0 or progress.step % save_every == 0:
                # Before anything is recorded or saved: the one place where a step waits for the GPU.
                _check_gradients(setup, experiment)
            progress.seconds += time.perf_counter() - began
            if logged:
                tracker.metrics(progress.step, meter.means(experiment.train.batch_size) | _ewa_metrics(setup))
            steps.update()
            best = False
            if progress.step % eval_every == 0 or done:
                sync_batchnorm_statistics(setup.model)
                with _divergence_told(experiment, progress.step):
                    _check_weights(setup.model)
                    best = _validate(setup, world, progress, tracker)
            if setup.probe and (progress.step % probe_every == 0 or done):
                with _divergence_told(experiment, progress.step):
                    _probe(setup.probe, setup.measured(progress.step), world, progress, tracker)
            # A collective: all processes must leave the loop after the same step, or the others would wait in the next
            # all-reduce.
            stop = first_signal(received, world.device)
            if best or stop or done or progress.step % save_every == 0:
                _check_gradients(setup, experiment)
                with _divergence_told(experiment, progress.step):
                    _check_weights(setup.model)
                _save(setup, experiment, world, progress, checkpoints, meter, best)
            if stop and not done:
                tracker.line(f"stopped after step {progress.step}, saved; the same command goes on from here")
                raise Stopped(stop)


def train_step(setup: Setup, experiment: Experiment, world: World, parallel: nn.Module, step: int) -> dict[str, Tensor]:
    """Take one optimizer step. Returns the metrics of this process's share of the batch, on the device.

    `parallel` is `setup.model`, compiled or not, or its DistributedDataParallel wrapper.

    Raises:
        TrainingError: a loss, gradient or prediction that is not finite. The weights stay as they are. On a GPU
        `setup.guard.found` raises it later, because no step waits for the GPU.
    """
    with _divergence_told(experiment, step + 1), noting_in(setup.guard.coordinates):
        return _train_step(setup, experiment, world, parallel, step)


def _train_step(
    setup: Setup, experiment: Experiment, world: World, parallel: nn.Module, step: int
) -> dict[str, Tensor]:
    train = experiment.train
    rate = setup.learning_rate(step)
    for group in setup.optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    metrics: dict[str, Tensor] = {}
    slots = setup.batches.of(world)
    for slot in slots:
        batch = setup.batches.draw(step, slot)
        setup.batches.seed_model(step, slot)
        # Forward and backward are both inside: DDP decides in the forward pass whether this backward reduces.
        with gradients_wait(parallel, slot == slots[-1]), compiled_pass(experiment):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                output = setup.objective.loss(parallel, batch, step)
            if experiment.ewa and experiment.ewa.arguments["gate"]:
                output = with_balance(output, setup.model)
            # Outside of autocast, as torch recommends: backward ops run in the dtype of their forward ops. The division
            # makes the sum of the gradients the mean over micro-batches; DDP takes the mean over processes.
            (output.loss / len(slots)).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": output.loss.detach(), **output.terms}.items():
            metrics[name] = metrics.get(name, torch.zeros_like(value)) + value / len(slots)
    # With an infinite bound it clips nothing and still returns the norm.
    norm = whole(nn.utils.clip_grad_norm_(setup.model.parameters(), train.clip_grad or math.inf))
    setup.guard.step(norm, metrics["loss"], step + 1)  # experts are averaged in the optimizer's post-step hook
    setup.optimizer.zero_grad(set_to_none=True)
    setup.objective.after_step(setup.model)
    if setup.weight_average:
        setup.weight_average.update(step + 1)
    return metrics | {"grad_norm": norm, "lr": torch.tensor(rate)}


def _validate(setup: Setup, world: World, progress: Progress, tracker: Tracker) -> bool:
    """Measure the merged model on the validation split. Returns True if it is the best so far."""
    if setup.splits.val is None:
        tracker.line(f"{_where(setup, progress)}: no validation part, {progress.seconds:.0f} s")
        return False
    score = setup.objective.evaluate(setup.measured(progress.step), setup.splits, "val", world.device)
    metric = setup.objective.main_metric
    value = progress.last_val = score.metrics()[metric.key]
    sign = 1 if metric.higher_is_better else -1
    best = progress.best_val is None or sign * value > sign * progress.best_val
    if best:
        progress.best_val, progress.best_step = value, progress.step
    tracker.metrics(progress.step, {f"val_{name}": value for name, value in score.metrics().items()})
    marked = " *" if best else ""
    tracker.line(f"{_where(setup, progress)}: validation {score.describe()}{marked}, {progress.seconds:.0f} s")
    return best


def _probe(probe: SVMProbe, model: nn.Module, world: World, progress: Progress, tracker: Tracker) -> None:
    """Fit the linear SVM on the current features, in the main process; the others wait."""
    with others_wait(world):
        if world.is_main:
            score = probe.measure(model, "val")
            tracker.metrics(progress.step, {f"svm_val_{name}": value for name, value in score.metrics().items()})
            tracker.line(f"  linear SVM on {probe.data.name}, validation part: {score.describe()}")


def _where(setup: Setup, progress: Progress) -> str:
    epoch = progress.step / setup.batches.steps_per_epoch
    return f"step {progress.step}/{setup.total_steps} (epoch {epoch:.4g})"


def _save(
    setup: Setup,
    experiment: Experiment,
    world: World,
    progress: Progress,
    checkpoints: Checkpoints,
    meter: Meter,
    best: bool,
) -> None:
    sync_batchnorm_statistics(setup.model)
    check_replicas(setup.model)
    # On all processes: gathering statistics and sharded tensors is a collective.
    averaged = setup.weight_average.state(progress.step) if setup.weight_average else {}
    model = whole_state(setup.model.state_dict(), world)
    optimizer = whole_state(setup.optimizer.state_dict(), world)
    progress.peak_memory = max(progress.peak_memory, peak_memory(world.device))
    progress.meter, progress.slots = meter.state(), setup.batches.slots
    if world.is_main:
        checkpoints.save(
            {
                **averaged,
                "progress": vars(progress),
                "model": model,
                "optimizer": optimizer,
                "config": experiment.model_dump(mode="json"),
                "class_names": list(setup.splits.train.class_names),
                "model_arguments": setup.model_arguments,
                "clouds": setup.clouds,
                "data": setup.data,
            },
            progress.step,
            best,
        )


def _check_weights(model: nn.Module) -> None:
    """Raise NotFiniteError if a weight is NaN or inf. Finite gradients can overflow a weight."""
    names, values = zip(*model.state_dict().items(), strict=True)
    bad = (i for i, v in enumerate(map(local_part, values)) if v.is_floating_point() and not v.isfinite().all())
    first = least_of_all(next(bad, len(names)), values[0].device)
    if first < len(names):
        raise NotFiniteError(f"{names[first]} holds NaN or inf")


def _ewa_metrics(setup: Setup) -> dict[str, float]:
    """Measure the mixtures. A collective, as each process holds a shard of sharded experts."""
    if setup.averager is None:
        return {}
    metrics: dict[str, float] = {}
    for name, measured in setup.averager.statistics().items():
        metrics |= {f"ewa/{name}/spread": measured.spread, f"ewa/{name}/cosine": measured.cosine}
        metrics["share_rate"] = measured.share_rate
    return metrics


def _check_gradients(setup: Setup, experiment: Experiment) -> None:
    """Raise TrainingError if a step since the last check had non-finite gradients. For a guard in deferred mode."""
    if found := setup.guard.found():
        raise _diverged(experiment, *found)


@contextmanager
def _divergence_told(experiment: Experiment, step: int) -> Iterator[None]:
    """Turn numbers that are not finite into a TrainingError with the remedy."""
    try:
        yield
    except (NotFiniteError, OutputError) as error:
        raise _diverged(experiment, step, str(error)) from None


def _diverged(experiment: Experiment, step: int, what: str) -> TrainingError:
    return TrainingError(
        f"step {step}: {what}: not finite; no checkpoint holds this step: lower train.lr (now "
        f"{experiment.train.lr:g}) or use train.precision=fp32"
    )
