"""ExpertAverager: moves the experts of each mixture a little towards each other after every optimizer step."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pc_ewa.ewa.conversion import expert_layers
from pc_ewa.ewa.experts import Mixture
from pc_ewa.ewa.stacks import merge_stack

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard

Schedule = Literal["constant", "linear", "cosine"]


class LayerStatistics(NamedTuple):
    """Distance of the experts of one mixture, over all their weights taken as vectors W_i with mean W̄.

    `spread` is the mean of ‖W_i - W̄‖ / ‖W̄‖; `cosine` the mean cosine of two different experts; `share_rate` the
    rate β of the latest averaging.
    """

    spread: float
    cosine: float
    share_rate: float


class ExpertAverager:
    """Experts weights averaging (EWA, arXiv 2308.06093, Eq. 6) after each optimizer step, in place.

    With share rate β and N experts, all at once from the weights before the step:

        W_i <- (1 - β) W_i + Σ_{j≠i} β/(N-1) W_j     =  W_i + γ (W̄ - W_i),   γ = β N/(N-1)

    The mean of the experts stays; their deviations from it shrink by 1 - γ. Under data parallelism every rank does
    the same arithmetic on the same weights: no communication.

    Args:
        model: a model with mixtures (`upcycle`). Of gated ones the experts are averaged, never the gate.
        share_rate: β, 0 to (N-1)/N, which merges the experts fully; the peak of the schedule.
        schedule: "constant"; or a "linear" or "cosine" ramp from 0 to `share_rate`.
        total_steps: optimizer steps of the whole training; needed unless the schedule is constant and always on.
        ramp: the share of the window over which the ramp rises; `share_rate` holds after it.
        start: averaging begins after this share of training.
        stop: averaging ends after this share of training (0.5 is "Early EWA").
        every: average each k-th step only, k steps at once: γ_k = 1 - (1 - γ)^k.

    Attributes:
        layers: the mixtures by name.
        steps_done: optimizer steps seen; `state_dict` has it.

    Raises:
        ValueError: an impossible value, or a model without mixtures.
    """

    def __init__(
        self,
        model: nn.Module,
        share_rate: float = 0.3,
        schedule: Schedule = "linear",
        total_steps: int | None = None,
        *,
        ramp: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
        every: int = 1,
    ) -> None:
        self.layers = expert_layers(model)
        if not self.layers:
            raise ValueError(f"{type(model).__name__} has no mixture of experts to average; upcycle() it first")
        _check_stacks(self.layers)
        for name, value in (("share_rate", share_rate), ("ramp", ramp), ("start", start), ("stop", stop)):
            if not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r}; it must be a number")
        _check_share_rate(share_rate, self.layers)
        if schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule={schedule!r}; choose 'constant', 'linear' or 'cosine'")
        if total_steps is None and (schedule != "constant" or (start, stop) != (0.0, 1.0)):
            raise ValueError(f"schedule={schedule!r} with start={start}, stop={stop} needs total_steps")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps={total_steps}; it must be at least 1")
        if not 0 <= start < stop <= 1:
            raise ValueError(f"start={start}, stop={stop}; they must satisfy 0 <= start < stop <= 1")
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp={ramp}; it must be above 0 and at most 1")
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}; it must be at least 1, and whole")
        self.share_rate, self.schedule, self.total_steps = share_rate, schedule, total_steps
        self.ramp, self.start, self.stop, self.every = ramp, start, stop, every
        self.steps_done = 0
        self._hook: RemovableHandle | None = None

    def attach(self, optimizer: Optimizer) -> "ExpertAverager":
        """Run after every `optimizer.step()` from now on; returns self. `detach()` ends it.

        A wrapper that holds the optimizer as `optimizer`, such as accelerate's, is unwrapped.

        Raises:
            ValueError: attached already (the experts would be averaged twice a step), not an optimizer, or an
                optimizer that lacks experts which train: it was built before `upcycle`, or of another model.
        """
        if self._hook:
            raise ValueError("the averager is attached to an optimizer already; detach() it first")
        inner = _unwrapped(optimizer)
        self._check_held(inner)
        others = [getattr(hook, "__self__", None) for hook in inner._optimizer_step_post_hooks.values()]
        if any(isinstance(each, ExpertAverager) and each._averages_with(self) for each in others):
            raise ValueError("another averager of these experts is attached to the optimizer; detach() it first")
        if inner.state and not self.steps_done:
            warnings.warn(
                "the optimizer has taken steps that this averager does not know of, so its schedule begins at 0; to "
                "resume, averager.load_state_dict() what averager.state_dict() gave",
                stacklevel=2,
            )
        self._hook = inner.register_step_post_hook(self._after_optimizer_step)
        return self

    def detach(self) -> None:
        """Take the hook off the optimizer, if there is one."""
        if self._hook:
            self._hook.remove()
        self._hook = None

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint needs to go on with the schedule: the number of optimizer steps done."""
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the state that `state_dict` returned.

        Raises:
            ValueError: something else.
        """
        steps = state.get("steps_done") if isinstance(state, Mapping) else None
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"{state!r} is not the state of an averager, such as {{'steps_done': 10}}")
        self.steps_done = steps

    def share_rate_at(self, step: int) -> float:
        """Return β for the averaging after optimizer step `step` (the first is 0): a pure function of the step."""
        if self.total_steps is None:
            return self.share_rate
        begin, end = round(self.start * self.total_steps), round(self.stop * self.total_steps)
        # A window up to the end of training has no end: who trains longer keeps the full rate.
        if step < begin or (step >= end and self.stop < 1):
            return 0.0
        if self.schedule == "constant":
            return self.share_rate
        # The ramp counts the steps done, so that it ends on the full rate.
        progress = min(1.0, (step + 1 - begin) / max(1.0, self.ramp * (end - begin)))
        return self.share_rate * (progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)

    @torch.no_grad()
    def step(self) -> None:
        """Average once, for those who call it by hand after `optimizer.step()` instead of attaching.

        Raises:
            ValueError: the model was merged, so that these experts are no longer in it.
        """
        if any(layer.merged for layer in self.layers.values()):
            raise ValueError(
                "the model was merged: this optimizer and this averager still hold its experts, which are no longer in "
                "it; build a new optimizer to train the merged model"
            )
        self.steps_done += 1
        if self.steps_done % self.every:
            return
        share_rate = self.share_rate_at(self.steps_done - 1)
        if share_rate == 0:
            return
        for layer in self.layers.values():
            gamma = 1 - (1 - share_rate * layer.num_experts / (layer.num_experts - 1)) ** self.every
            for stack in _stacks(layer):
                stack.lerp_(merge_stack(stack).expand_as(stack), gamma)

    @torch.no_grad()
    def statistics(self) -> dict[str, LayerStatistics]:
        """Measure every mixture; under sharding, the part of the weights on this rank."""
        rate = self.share_rate_at(max(0, self.steps_done - 1))
        return {name: _measure(layer, rate) for name, layer in self.layers.items()}

    def _averages_with(self, other: "ExpertAverager") -> bool:
        """Return True if both have a mixture in common."""
        return not {*map(id, self.layers.values())}.isdisjoint(map(id, other.layers.values()))

    def _check_held(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless the optimizer has every expert that trains."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        stacks = {f"{name}.{key}".lstrip("."): p for name, m in self.layers.items() for key, p in m.named_parameters()}
        trained = {name: stack for name, stack in stacks.items() if stack.requires_grad}
        absent = [name for name, stack in trained.items() if id(stack) not in held]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(trained)} parameters of the mixtures are not in the optimizer, such as "
                f"{absent[0]}, and it would not train them; build it after upcycle(), from model.parameters() "
                "(with several optimizers, call averager.step() after them instead of attaching)"
            )
        if not trained:
            warnings.warn("all experts are frozen (requires_grad=False): averaging changes nothing", stacklevel=3)

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        # Fused optimizers run under a GradScaler even when they skip the update inside their kernel.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self.step()


def _unwrapped(optimizer: object) -> Optimizer:
    """Return the optimizer that steps, out of what wraps it."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ValueError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer; attach the averager to the optimizer before "
            "something wraps it"
        )
    return optimizer


def _check_stacks(layers: dict[str, Mixture]) -> None:
    """Raise ValueError if a mixture has come to hold what is not a stack of its experts, such as an adapter."""
    for name, layer in layers.items():
        for key, parameter in layer.experts.named_parameters():
            if parameter.shape[:1] != (layer.num_experts,):
                raise ValueError(
                    f"{name}.experts.{key} is of shape {tuple(parameter.shape)}, no stack of {layer.num_experts} "
                    "experts; take out what was put into the mixture after upcycle(), such as LoRA"
                )


def _check_share_rate(share_rate: float, layers: dict[str, Mixture]) -> None:
    """Raise ValueError unless 0 <= β <= (N-1)/N; above that the averaging would overshoot the mean."""
    name, fewest = min(layers.items(), key=lambda item: item[1].num_experts)
    count = fewest.num_experts
    limit = (count - 1) / count
    if not 0 <= share_rate <= limit:
        where = f" in {name}" if any(layer.num_experts > count for layer in layers.values()) else ""
        raise ValueError(f"share_rate={share_rate} with {count} experts{where}; choose 0 to (N-1)/N = {limit}")


def expert_shard_placement(parameter: nn.Parameter) -> "Shard":
    """`shard_placement_fn` for FSDP2: splits stacked experts on axis 1, so that averaging stays local.

    Shard every mixture with it first, `fully_shard(layer, shard_placement_fn=expert_shard_placement)` for each layer of
    `expert_layers(model)`, and then the model as usual.
    """
    from torch.distributed.tensor import Shard  # half a second to import, and few need it

    return Shard(1)


def _stacks(layer: Mixture) -> Iterator[Tensor]:
    """The stacked parameters of a mixture, without a gate's; of sharded ones (DTensor), the part on this rank."""
    for stack in layer.experts.parameters():
        placements = getattr(stack, "placements", None)
        if placements is None:
            yield stack
        elif any(placement.is_shard(0) for placement in placements):
            raise ValueError("experts sharded on axis 0; pass shard_placement_fn=expert_shard_placement to fully_shard")
        else:
            yield stack.to_local()  # type: ignore[attr-defined]


def _measure(layer: Mixture, share_rate: float) -> LayerStatistics:
    experts = torch.cat([stack.detach().flatten(1).double() for stack in _stacks(layer)], dim=1)
    mean = experts.mean(0)
    spread = ((experts - mean).norm(dim=1) / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny)).mean()
    unit = torch.nn.functional.normalize(experts, dim=1)
    cosines = unit @ unit.T
    count = layer.num_experts
    cosine = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    return LayerStatistics(spread.item(), cosine.item(), share_rate)
