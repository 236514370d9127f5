"""Averages of the whole model over training, by torch.optim.swa_utils: EMA and SWA, the rivals of averaging experts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import whole_copy
from pc_ewa.ewa.sharding import is_sharded, local_part
from pc_ewa.streams import stream
from pc_ewa.train.batches import STATISTICS, Batches
from pc_ewa.train.distributed import World, sync_batchnorm_statistics
from pc_ewa.train.objectives import Objective
from pc_ewa.train.sharding import load_model, shard, whole_state


class WeightAverage:
    """The average of a model's weights, as the experiment's `average` section says; experts are averaged as stacks.

    "ema" counts the weights after every optimizer step: A <- decay A + (1 - decay) W, buffers of batch norms alike.
    "swa" (arXiv 1803.05407) is the plain mean of the weights after every epoch; the statistics of batch norms are
    those of the mean itself, from one epoch of draws. Either begins with the first step after `average.start`. All
    other buffers are those of the live model. Every process does the same arithmetic.

    Args:
        experiment: with an `average` section.
        model: the live model, on its device; it is copied, and never changed.
        objective: makes the forward passes that gather statistics.
        batches: of training.
        total_steps: optimizer steps of the whole training.
        world: this process among all.

    Raises:
        ConfigError: SWA in a training without the end of an epoch in it after `average.start`.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        total_steps: int,
        world: World,
    ) -> None:
        assert experiment.average
        self.settings, self.experiment = experiment.average, experiment
        self.live, self.objective, self.batches, self.world = model, objective, batches, world
        ema = self.settings.kind == "ema"
        self.begin, self.every = round(self.settings.begins * total_steps), 1 if ema else batches.steps_per_epoch
        if total_steps // self.every * self.every <= self.begin:
            what = "step" if ema else f"end of an epoch of {self.every} steps"
            raise ConfigError(
                f"average.start={self.settings.begins}: after {self.begin} of {total_steps} steps comes no {what}: "
                "nothing would be averaged; lower it or train longer"
            )
        how = get_ema_multi_avg_fn(self.settings.decay) if ema else None  # type: ignore[no-untyped-call]
        self.steps = total_steps - self.begin
        if is_sharded(model):
            how = _on_shards(how or get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
            self.average = AveragedModel(whole_copy(model), multi_avg_fn=how, use_buffers=ema)
            shard(self.average.module, world)
        else:
            self.average = AveragedModel(model, multi_avg_fn=how, use_buffers=ema)
        self._statistics_of = 0  # how many models the average was made of when its statistics were gathered

    @property
    def count(self) -> int:
        """Number of models in the average; 0 before it begins."""
        return int(self.average.n_averaged)

    def learning_rate(self, schedule: Callable[[int], float]) -> Callable[[int], float]:
        """The schedule, or `average.lr` from where averaging begins."""
        lr = self.settings.lr
        return schedule if lr is None else lambda step: schedule(step) if step < self.begin else lr

    def update(self, step: int) -> None:
        """Count the weights of the live model after `step` optimizer steps, if they count."""
        if step > self.begin and step % self.every == 0:
            self.average.update_parameters(self.live)
            for averaged, live in zip(self.average.module.modules(), self.live.modules(), strict=True):
                for name, buffer in averaged.named_buffers(recurse=False):
                    # A mean of counters, or of a queue of keys that moved on, is neither.
                    if not isinstance(averaged, _BatchNorm) or not buffer.is_floating_point():
                        buffer.copy_(live.get_buffer(name))

    def measured(self, step: int) -> nn.Module:
        """Return the averaged model, with its BatchNorm statistics, or the live model if averaging has not started."""
        if not self.count:
            return self.live
        if self.settings.kind == "ema":
            sync_batchnorm_statistics(self.average.module)
        elif self._statistics_of != self.count:
            self._gather_statistics(step // self.every * self.every)
            self._statistics_of = self.count
        return self.average.module

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint keeps: the averaged weights under `averaged`; nothing before averaging."""
        if not self.count:
            return {}
        state = whole_state(self.measured(step).state_dict(), self.world)
        return {"averaged": state, "averaged_models": self.count}

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        if "averaged" in content:
            load_model(self.average.module, content["averaged"])
            self.average.n_averaged.fill_(content["averaged_models"])
            self._statistics_of = self.count

    def describe(self) -> str:
        """One line on what is averaged."""
        if self.settings.kind == "ema":
            line = f"average: ema, decay {self.settings.decay:g}, of the weights of every step after {self.begin}"
            memory = 1 / (1 - self.settings.decay)
            if memory > self.steps / 4:
                line += f"; it remembers {memory:.0f} of {self.steps} steps, early ones too: lower average.decay"
            return line
        rate = "" if self.settings.lr is None else f", learning rate {self.settings.lr:g} from there on"
        return f"average: swa of the weights of every {self.every} steps after {self.begin}{rate}"

    def _gather_statistics(self, step: int) -> None:
        """Make the statistics of batch norms those of the average, from the same draws every time."""
        train, model = self.experiment.train, self.average.module
        # Its own seed: draws that are no draws of training.
        own = self.experiment.model_copy(update={"seed": stream(self.experiment.seed, STATISTICS)})
        draws = Batches(self.batches.clouds, own, self.batches.slots, self.batches.device)
        forward = _Forward(model, self.objective, draws, train.precision == "bf16", step)
        parts = [(s, slot) for s in range(draws.steps_per_epoch) for slot in draws.of(self.world)]
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _frozen_statistics_kept(model.train()):
            update_bn([[part] for part in parts], forward)  # it passes on the first of each list
        sync_batchnorm_statistics(model)


class _Forward(nn.Module):
    """A training forward of a model on a part of a batch, as `update_bn` calls it."""

    def __init__(self, model: nn.Module, objective: Objective, batches: Batches, bf16: bool, step: int) -> None:
        super().__init__()
        self.model, self.objective, self.batches, self.bf16, self.step = model, objective, batches, bf16, step

    def forward(self, part: tuple[int, int]) -> Tensor:
        """Return the loss of a part, given as (step, slot)."""
        batch = self.batches.draw(*part)
        self.batches.seed_model(*part)
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective.loss(self.model, batch, self.step).loss


def _on_shards(average: Callable[..., None]) -> Callable[..., None]:
    """Let an averaging function of torch work on this process's parts: it takes no mixture of DTensors and others."""
    return lambda averaged, live, count: average([*map(local_part, averaged)], [*map(local_part, live)], count)


@contextmanager
def _frozen_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep `update_bn` off the batch norms that evaluate while their model trains, such as a frozen tokenizer's."""
    frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and not m.training and m.track_running_stats]
    for module in frozen:
        module.track_running_stats = False  # in evaluation it decides only whether they are reset
    try:
        yield
    finally:
        for module in frozen:
            module.track_running_stats = True
