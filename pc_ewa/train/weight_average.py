"""Averages of the whole model over training, by torch.optim.swa_utils: EMA and SWA, the baselines of EWA."""

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
    """The average of a model's weights, with the settings of the `average` section. Experts are averaged as stacks.

    "ema" updates the average after every optimizer step: A <- decay A + (1 - decay) W. Running statistics of batch
    norms are averaged the same way. "swa" (arXiv 1803.05407) is the plain mean of the weights after every epoch. The
    statistics of its batch norms are measured with the mean itself, on one epoch of draws. Either begins with the first
    step after `average.start`. All other buffers are those of the live model. Every process does the same arithmetic.

    Args:
        experiment: an experiment with an `average` section.
        model: the live model, on its device. It is copied, and never changed.
        objective: computes the forward passes that measure statistics.
        batches: the training batches.
        total_steps: optimizer steps of the whole training.
        world: this process among all.

    Raises:
        ConfigError: no step, or for SWA no end of an epoch, after `average.start`.
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
        self._statistics_of = 0  # `count` at the time when the statistics were measured

    @property
    def count(self) -> int:
        """Number of models in the average; 0 before it begins."""
        return int(self.average.n_averaged)

    def learning_rate(self, schedule: Callable[[int], float]) -> Callable[[int], float]:
        """Return a schedule with `average.lr` after averaging begins. Without `average.lr` it is returned unchanged."""
        lr = self.settings.lr
        return schedule if lr is None else lambda step: schedule(step) if step < self.begin else lr

    def update(self, step: int) -> None:
        """Add the weights of the live model after `step` optimizer steps, if the average includes this step."""
        if step > self.begin and step % self.every == 0:
            self.average.update_parameters(self.live)
            for averaged, live in zip(self.average.module.modules(), self.live.modules(), strict=True):
                for name, buffer in averaged.named_buffers(recurse=False):
                    # Counters and MoCo's queue of keys are copied: their mean over steps has no meaning.
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
        """Return the entries for a checkpoint: the weights as `averaged`, and their count. Empty before averaging."""
        if not self.count:
            return {}
        state = whole_state(self.measured(step).state_dict(), self.world)
        return {"averaged": state, "averaged_models": self.count}

    def load(self, content: Mapping[str, Any]) -> None:
        """Load the average from a checkpoint."""
        if "averaged" in content:
            load_model(self.average.module, content["averaged"])
            self.average.n_averaged.fill_(content["averaged_models"])
            self._statistics_of = self.count

    def describe(self) -> str:
        """Describe the average in one line."""
        if self.settings.kind == "ema":
            line = f"average: ema, decay {self.settings.decay:g}, of the weights of every step after {self.begin}"
            memory = 1 / (1 - self.settings.decay)
            if memory > self.steps / 4:
                line += f"; it remembers {memory:.0f} of {self.steps} steps, early ones too: lower average.decay"
            return line
        rate = "" if self.settings.lr is None else f", learning rate {self.settings.lr:g} from there on"
        return f"average: swa of the weights of every {self.every} steps after {self.begin}{rate}"

    def _gather_statistics(self, step: int) -> None:
        """Measure the batch norm statistics of the average, on the same draws every time."""
        train, model = self.experiment.train, self.average.module
        # A separate seed, so that these draws are independent of those of training.
        own = self.experiment.model_copy(update={"seed": stream(self.experiment.seed, STATISTICS)})
        draws = Batches(self.batches.clouds, own, self.batches.slots, self.batches.device)
        forward = _Forward(model, self.objective, draws, train.precision == "bf16", step)
        parts = [(s, slot) for s in range(draws.steps_per_epoch) for slot in draws.of(self.world)]
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        # The forward passes seed and consume the global generator; the training goes on with its state from before.
        with torch.random.fork_rng(devices), _frozen_statistics_kept(model.train()):
            update_bn([[part] for part in parts], forward)  # it calls the model with the first element of each list
        sync_batchnorm_statistics(model)


class _Forward(nn.Module):
    """A training forward pass of a model on a micro-batch, as a module that `update_bn` can call."""

    def __init__(self, model: nn.Module, objective: Objective, batches: Batches, bf16: bool, step: int) -> None:
        super().__init__()
        self.model, self.objective, self.batches, self.bf16, self.step = model, objective, batches, bf16, step

    def forward(self, part: tuple[int, int]) -> Tensor:
        """Return the loss of a micro-batch, given as (step, slot)."""
        batch = self.batches.draw(*part)
        self.batches.seed_model(*part)
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective.loss(self.model, batch, self.step).loss


def _on_shards(average: Callable[..., None]) -> Callable[..., None]:
    """Apply an averaging function of torch to local shards: it does not take DTensors and plain tensors together."""
    return lambda averaged, live, count: average([*map(local_part, averaged)], [*map(local_part, live)], count)


@contextmanager
def _frozen_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Protect batch norms in evaluation mode, such as a frozen tokenizer's, from `update_bn`, which resets them all."""
    frozen = [m for m in model.modules() if isinstance(m, _BatchNorm) and not m.training and m.track_running_stats]
    for module in frozen:
        # In evaluation mode the flag has no effect on the forward pass, and reset_running_stats() does nothing without
        # it.
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in frozen:
            module.track_running_stats = True
