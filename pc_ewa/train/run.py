"""Run an experiment: set up, train, merge the experts, evaluate and report, into one run folder."""

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.data import Clouds
from pc_ewa.data.digest import short
from pc_ewa.errors import CheckpointError, Error
from pc_ewa.eval import Accuracy, Score
from pc_ewa.eval.right import pack_right
from pc_ewa.ewa import expert_layers, has_gate, whole_copy
from pc_ewa.ewa.find_ffns import find_ffns
from pc_ewa.models.checkpoints.read import read_weights
from pc_ewa.text import printable
from pc_ewa.train.distributed import World, alone, is_main_process, join_world, others_wait
from pc_ewa.train.hand_over import Report, hand_over
from pc_ewa.train.loop import Progress, refuse_other_data, resume, train
from pc_ewa.train.meter import reset_peak_memory
from pc_ewa.train.restored import at_inference, evaluate_routed, save_merged
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.setup import Setup, build, digest_of
from pc_ewa.train.splits import load_splits
from pc_ewa.train.summary import describe_summary
from pc_ewa.train.tracking import Tracker, check_trackers


def run(experiment: Experiment, report: Report | None = None) -> dict[str, Any]:
    """Run an experiment to its end, or resume it where it stopped.

    Args:
        experiment: the run.
        report: writes a page on the finished run, which the trackers get too. None writes none.

    Returns:
        The summary, as in summary.json.

    Raises:
        Error: a problem that the user can solve, found before training where that is possible.
        Stopped: a stop signal arrived; the same call resumes from the saved state.
    """
    folder = RunFolder(experiment.output, experiment.train.keep)
    folder.check(experiment)
    if summary := folder.summary():
        _check_data(experiment, folder)
        if is_main_process():
            print(_finished(folder, summary))
            if report:
                print(report(folder.path)[1])
        return summary
    check_trackers(experiment)
    with join_world(experiment.device) as world:
        began = time.perf_counter()
        reset_peak_memory(world.device)
        # Loading and digesting data may take processes more than the 3 minutes after which a collective fails.
        with others_wait(world):
            setup = build(experiment, world)
        with folder.lock() if world.is_main else nullcontext():
            return _Run(experiment, folder, setup, world).to_its_end(began, report)


def _check_data(experiment: Experiment, folder: RunFolder) -> None:
    """Refuse a finished run whose data have changed: its scores would pass for those of the data of now.

    Data or checkpoints that are gone, or that cannot be read, change nothing: a finished run needs neither.
    """
    try:
        content, data = folder.checkpoints.newest(), digest_of(load_splits(experiment.data, experiment.seed))
    except Error:
        return
    if content is not None:
        refuse_other_data(content, data, folder.checkpoints)


def check(experiment: Experiment, processes: int = 1) -> str:
    """Build everything that a run needs, without writing or training anything.

    Args:
        experiment: the run.
        processes: number of processes of the run; 1 leaves it to WORLD_SIZE, which torchrun sets.

    Returns:
        A line on the data, the run folder and the number of steps.

    Raises:
        Error: a problem that would stop the run before its first step.
    """
    folder = RunFolder(experiment.output, experiment.train.keep)
    folder.check(experiment)
    check_trackers(experiment)
    setup = build(experiment, alone(experiment.device, processes))
    progress = resume(setup, folder.checkpoints)
    state = "finished" if folder.is_finished else f"resumes after step {progress.step}" if progress.step else "new"
    parts = "/".join(str(len(split)) for split in setup.splits if isinstance(split, Clouds))
    return (
        f"config, data ({parts} samples) and run folder {folder.path} ({state}) are in order: "
        f"{experiment.model.name} of {_count(at_inference(setup.model)):,} parameters{_experts_in(setup.model)}, "
        f"{setup.total_steps} steps; nothing was trained"
    )


def _experts_in(model: nn.Module) -> str:
    """Describe the mixtures that a model trains with."""
    layers = expert_layers(model)
    return f" trained with {len(layers)} mixtures ({_count(model):,})" if layers else " without experts"


def _finished(folder: RunFolder, summary: dict[str, Any]) -> str:
    """Describe a finished run and its results."""
    try:
        text = describe_summary(summary)
    except (KeyError, TypeError, ValueError, AttributeError):
        remedy = "delete it, and the same command makes it again"
        raise CheckpointError(f"the summary of {folder.path} lacks what a run leaves; {remedy}") from None
    told = f"{folder.path} is finished; to train again choose another output=... or delete the folder\n{text}"
    return "\n".join(printable(line, None) for line in told.split("\n"))


class _Run:
    """A run that is set up, and the seconds that its stages take."""

    def __init__(self, experiment: Experiment, folder: RunFolder, setup: Setup, world: World) -> None:
        self.experiment, self.folder, self.setup, self.world = experiment, folder, setup, world
        self.seconds: dict[str, float] = {}

    def to_its_end(self, began: float, report: Report | None = None) -> dict[str, Any]:
        """Train from the newest checkpoint, then measure. Returns the summary."""
        progress = resume(self.setup, self.folder.checkpoints)
        if self.world.is_main:
            self.folder.tidy()
            self.folder.begin(self.experiment, _environment(self.world))
        active, steps_per_epoch = self.world.is_main, self.setup.batches.steps_per_epoch
        with Tracker(self.folder, self.experiment, progress.step, active, steps_per_epoch) as tracker:
            for note in (f"run: {self.folder.path}", *self.setup.notes):
                tracker.line(note)
            if progress.step:
                tracker.line(f"resuming after step {progress.step}")
                if (parts := len(self.setup.batches.of(self.world))) != self.experiment.train.accumulate:
                    tracker.line(
                        f"each process takes {parts} of {self.setup.batches.slots} parts of a batch, as many as before"
                    )
            self.seconds["setup"] = time.perf_counter() - began
            train(self.setup, self.experiment, self.world, progress, self.folder.checkpoints, tracker)
            self.seconds["train"] = progress.seconds
            tracker.line(f"training has ended; measuring on {len(self.setup.splits.test)} test samples")
            summary = self.summary(progress)
            tracker.summary(summary)
            tracker.line("\n" + describe_summary(summary))
            with others_wait(self.world):
                if self.world.is_main:
                    setup, device = self.setup, self.world.device
                    hand_over(tracker, self.folder, setup.objective, setup.splits, device, summary, report)
        return summary

    def summary(self, progress: Progress) -> dict[str, Any]:
        """Evaluate the last and the best state on test, write the merged models and return the summary.

        Without a validation split there is no best state, only the last.
        """
        setup = self.setup
        model = setup.measured(progress.step)
        summary = self._about(model, progress)
        last = self._measure(model, "last")
        summary |= last
        if progress.best_step == progress.step:
            if self.world.is_main:
                self.folder.copy_merged("last", "best")
            summary |= {f"{name}_best": value for name, value in last.items()}
        elif progress.best_step is not None:
            model = whole_copy(setup.model)
            # In a run with `average`, the checkpoint holds the averaged weights, if averaging had started by then.
            model.load_state_dict(read_weights(self.folder.checkpoints.best))
            best = self._measure(model, "best")
            summary |= {f"{name}_best": value for name, value in best.items()}
        return summary | {"seconds": {stage: round(value, 2) for stage, value in self.seconds.items()}}

    def _about(self, model: nn.Module, progress: Progress) -> dict[str, Any]:
        experiment, splits, metric = self.experiment, self.setup.splits, self.setup.objective.main_metric.key
        merged = at_inference(model)
        return {
            "output": str(self.folder.path),
            "model": experiment.model.name,
            "main_metric": metric,
            "seed": experiment.seed,
            "steps": progress.step,
            "best_step": progress.best_step,
            "data": short(self.setup.data),
            "val_samples": len(splits.val) if splits.val else 0,
            "val_is_cut_from_train": splits.val_is_cut,
            f"val_{metric}": progress.last_val,
            f"val_{metric}_best": progress.best_val,
            "test_samples": len(splits.test),
            "mixtures": len(expert_layers(model)),
            "gated": has_gate(model),
            "average": experiment.average.kind if experiment.average else None,
            "params_training": _count(model),
            "params_merged": _count(merged),
            "ffns_training": _ffns(model),
            "ffns_merged": _ffns(merged),
            "peak_memory": progress.peak_memory,
        }

    def _measure(self, model: nn.Module, which: Literal["last", "best"]) -> dict[str, Any]:
        """Measure a state before and after merging, and write the merged model. A gated model is measured once."""
        unmerged = None
        if not has_gate(model.eval()):
            unmerged = evaluate_routed(model, self._on_test, self.experiment.seed, self.world.rank)
        with self._timed("merge"):
            merged_model = at_inference(model)
            if self.world.is_main:
                setup, path = self.setup, self.folder.merged(which)
                names = list(setup.splits.train.class_names)
                save_merged(merged_model, self.experiment, names, setup.model_arguments, setup.clouds, setup.data, path)
        merged = self._on_test(merged_model)
        first = (unmerged or merged).metrics()
        metrics: dict[str, Any] = {f"test_{name}_unmerged": value for name, value in first.items()}
        metrics |= {f"test_{name}_merged": value for name, value in merged.metrics().items()}
        if isinstance(merged, Accuracy) and merged.right is not None:
            metrics["test_right_merged"] = pack_right(merged.right)
        return metrics | self._svm(merged_model)

    def _svm(self, model: nn.Module) -> dict[str, float]:
        """Fit the linear SVM to the features of a model. Only the main process fits it and gets the result."""
        if not self.setup.probe:
            return {}
        with self._timed("evaluate"), others_wait(self.world):
            score = self.setup.probe.measure(model, "test") if self.world.is_main else None
        return {f"test_svm_{name}_merged": value for name, value in score.metrics().items()} if score else {}

    def _on_test(self, model: nn.Module) -> Score:
        with self._timed("evaluate"):
            return self.setup.objective.evaluate(model, self.setup.splits, "test", self.world.device)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def _environment(world: World) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "command": sys.argv,
    }


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _ffns(model: nn.Module) -> int:
    """Count the FFNs of a model, each expert as one."""
    try:
        places = len(find_ffns(model))
    except ValueError:  # a model without FFNs, such as the dVAE
        return 0
    return places + sum(mixture.num_experts - 1 for mixture in expert_layers(model).values())
