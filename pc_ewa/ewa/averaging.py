"""ExpertAverager: moves the experts of each mixture towards their mean after every optimizer step."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pc_ewa.ewa.conversion import expert_layers
from pc_ewa.ewa.experts import Mixture
from pc_ewa.ewa.schedules import Schedule, ShareRate
from pc_ewa.ewa.stacks import merge_stack
from pc_ewa.ewa.statistics import LayerStatistics, local_stacks, measure


class ExpertAverager:
    """Experts weights averaging (EWA, arXiv 2308.06093, Eq. 6) after each optimizer step, in place.

    With share rate β and N experts, all experts are updated at once from the weights before the averaging:

        W_i <- (1 - β) W_i + Σ_{j≠i} β/(N-1) W_j     =  W_i + γ (W̄ - W_i),   γ = β N/(N-1)

    The mean of the experts does not change. Their deviations from it shrink by the factor 1 - γ. Under data
    parallelism every rank does the same arithmetic on the same weights, so there is no communication.

    Args:
        model: a model with mixtures (`upcycle`). In a gated mixture the experts are averaged, never the gate.
        share_rate: β, the peak of the schedule, from 0 to (N-1)/N. The largest value merges the experts fully.
        schedule: "constant"; a "linear" or "cosine" ramp from 0 to `share_rate`; or "lr", which follows the learning
            rate of each step: γ = min(γ of `share_rate`, (lr / alpha)^power). It falls as the learning rate does. The
            rule is that of local SGD, whose workers synchronise less often then (Gu et al., arXiv 2303.01215, and the
            quadratic rule, arXiv 2310.14423). If several parameter groups hold experts, their largest rate is taken.
        total_steps: optimizer steps of the whole training. A ramp, `start` and `stop` need it.
        ramp: fraction of the window over which the ramp rises. After it the rate stays at `share_rate`.
        start: fraction of training after which averaging begins.
        stop: fraction of training after which averaging ends (0.5 is "Early EWA").
        every: average only at each k-th step, with the strength of k steps: γ_k = 1 - (1 - γ)^k.
        alpha: for "lr": the learning rate at which the experts would be merged fully.
        power: for "lr": 1 or 2.

    Attributes:
        layers: the mixtures by name.
        steps_done: number of optimizer steps seen. It is the content of `state_dict`.

    Raises:
        ValueError: an impossible value, or a model without mixtures.

    Example:
        >>> model = pc_ewa.upcycle(nn.TransformerEncoderLayer(8, 2, 32), num_experts=2, layers="all")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> averager = pc_ewa.ExpertAverager(model, share_rate=0.3, total_steps=10).attach(optimizer)
        >>> model(torch.rand(4, 5, 8)).sum().backward()
        >>> optimizer.step()  # the optimizer's step, then the averaging
        >>> averager.steps_done
        1
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
        alpha: float | None = None,
        power: int = 2,
    ) -> None:
        self.layers = expert_layers(model)
        if not self.layers:
            raise ValueError(f"{type(model).__name__} has no mixture of experts to average; upcycle() it first")
        _check_stacks(self.layers)
        numbers = {"share_rate": share_rate, "ramp": ramp, "start": start, "stop": stop, "power": power}
        for name, value in (numbers | ({} if alpha is None else {"alpha": alpha})).items():
            if not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r}; it must be a number")
        _check_share_rate(share_rate, self.layers)
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}; it must be at least 1, and whole")
        fewest = min(layer.num_experts for layer in self.layers.values())
        self.rate = ShareRate(share_rate, schedule, total_steps, ramp, start, stop, alpha, power, fewest)
        self.every = every
        self.steps_done = 0
        self._hook: RemovableHandle | None = None
        self._reads_found_inf = True
        self._lr: float | None = None  # of the latest step
        self._is_first = False  # True: the next step is the first since attach()

    def attach(self, optimizer: Optimizer, *, reads_found_inf: bool = True) -> "ExpertAverager":
        """Average after every `optimizer.step()` from now on, and return self. `detach()` ends it.

        A wrapper that holds the optimizer as `optimizer`, such as accelerate's, is unwrapped.

        Args:
            optimizer: the optimizer of the experts.
            reads_found_inf: applies to a fused optimizer under a `GradScaler`. Such an optimizer has a flag `found_inf`
                and skips the step inside its kernel where the flag is 1. True reads the flag, which waits for the GPU,
                and does not count a skipped step. False does not wait. A skipped step then leaves the experts as they
                are, and counts.

        Raises:
            ValueError: the averager is attached already (the experts would be averaged twice a step), the argument is
                not an optimizer, the experts are sharded on the expert axis (use `expert_shard_placement`), or the
                optimizer lacks trainable experts because it was built before `upcycle` or `fully_shard`, or from
                another model.
        """
        if self._hook:
            raise ValueError("the averager is attached to an optimizer already; detach() it first")
        inner = _unwrapped(optimizer)
        for layer in self.layers.values():
            list(local_stacks(layer))  # raises for experts that cannot be averaged here
        self._check_held(inner)
        if not any(stack.requires_grad for stack in self._stacks().values()):
            warnings.warn("all experts are frozen (requires_grad=False): averaging changes nothing", stacklevel=2)
        # The hook is a bound method, so `__self__` is the averager that registered it. A second averager of the same
        # experts, say from a notebook cell that was run twice, would double the share rate without any other sign.
        others = [getattr(hook, "__self__", None) for hook in inner._optimizer_step_post_hooks.values()]
        if any(isinstance(each, ExpertAverager) and each._averages_with(self) for each in others):
            raise ValueError("another averager of these experts is attached to the optimizer; detach() it first")
        if inner.state and not self.steps_done:
            warnings.warn(
                "the optimizer has taken steps that this averager has not seen, so its schedule begins at 0; to "
                "resume, pass the saved averager.state_dict() to averager.load_state_dict()",
                stacklevel=2,
            )
        self._reads_found_inf = reads_found_inf
        self._hook = inner.register_step_post_hook(self._after_optimizer_step)
        self._lr = self._learning_rate(inner)
        self._is_first = True
        return self

    def detach(self) -> None:
        """Remove the hook from the optimizer, if there is one."""
        if self._hook:
            self._hook.remove()
        self._hook = None

    def state_dict(self) -> dict[str, int]:
        """Return the state that a checkpoint needs to continue the schedule: the number of optimizer steps done."""
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            ValueError: the argument is not such a state.
        """
        steps = state.get("steps_done") if isinstance(state, Mapping) else None
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ValueError(f"{state!r} is not the state of an averager, such as {{'steps_done': 10}}")
        self.steps_done = steps

    def share_rate_at(self, step: int, lr: float | None = None) -> float:
        """Return β for the averaging after optimizer step `step`, counted from 0, at learning rate `lr`.

        The result depends on the step alone, and for schedule "lr" also on the learning rate.

        Raises:
            ValueError: the schedule is "lr" and no learning rate is given.
        """
        return self.rate.at(step, lr)

    @torch.no_grad()
    def step(self, lr: float | None = None, unless: Tensor | None = None) -> None:
        """Average once. Call it after `optimizer.step()` instead of attaching the averager.

        Args:
            lr: the learning rate of that step, for schedule "lr". An attached averager reads it from the optimizer.
            unless: a scalar on the device of the experts. The experts are averaged if it is 0 and left as they are if
                it is 1.

        Raises:
            ValueError: the averager is attached, and would average twice a step; the model was merged, so that these
                experts are no longer in it; or the schedule is "lr" and no learning rate is given.
        """
        if self._hook:
            raise ValueError(
                "the averager is attached, and averages after each optimizer.step() by itself; leave one out"
            )
        self._step(lr, unless)

    @torch.no_grad()
    def _step(self, lr: float | None, unless: Tensor | None = None) -> None:
        if any(layer.merged for layer in self.layers.values()):
            raise ValueError(
                "the model was merged: this optimizer and this averager still hold its experts, which are no longer in "
                "it; build a new optimizer to train the merged model"
            )
        share_rate = self.share_rate_at(self.steps_done, lr)
        self._lr = lr
        self.steps_done += 1
        for layer in self.layers.values():
            layer.averaged = True
        if self.rate.total_steps is not None and self.steps_done == self.rate.total_steps + 1:
            warnings.warn(
                f"more than total_steps={self.rate.total_steps} optimizer steps: the schedule has ended too early; "
                "give the number of all optimizer steps of the training",
                stacklevel=2,
            )
        if self.steps_done % self.every:
            return
        if share_rate == 0:
            return
        for layer in self.layers.values():
            gamma = 1 - (1 - share_rate * layer.num_experts / (layer.num_experts - 1)) ** self.every
            for _, stack in local_stacks(layer):
                # A product with the flag, not an `if`: reading the flag on the host would wait for the GPU.
                weight = gamma if unless is None else ((1 - unless) * gamma).to(stack.dtype)
                # merge_stack makes a new tensor, so every expert moves towards the mean of the weights before the step.
                # lerp_ on equal experts is exact: their mean is bit-equal to them, and lerp adds a product with 0.
                stack.lerp_(merge_stack(stack).expand_as(stack), weight)

    @torch.no_grad()
    def statistics(self) -> dict[str, LayerStatistics]:
        """Measure every mixture. Under sharding all processes must call it together, and all get the same result."""
        rate = self.share_rate_at(max(0, self.steps_done - 1), self._lr or 0.0)
        return {name: measure(layer, rate) for name, layer in self.layers.items()}

    def _learning_rate(self, optimizer: Optimizer) -> float:
        """Return the largest learning rate of the groups that hold experts; 0 if none does."""
        stacks = {id(stack) for layer in self.layers.values() for stack in layer.experts.parameters()}
        rates = [g["lr"] for g in optimizer.param_groups if not stacks.isdisjoint(map(id, g["params"])) and "lr" in g]
        return float(max(rates, default=0.0))

    def _averages_with(self, other: "ExpertAverager") -> bool:
        """Return True if both have a mixture in common."""
        return not {*map(id, self.layers.values())}.isdisjoint(map(id, other.layers.values()))

    def _check_held(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless the optimizer has every expert that trains."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = {name: stack for name, stack in self._stacks().items() if stack.requires_grad}
        absent = [name for name, stack in trained.items() if id(stack) not in held]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(trained)} parameters of the mixtures are not in the optimizer, such as "
                f"{absent[0]}, and it would not train them; build it after upcycle() and fully_shard(), from "
                "model.parameters() (with several optimizers, call averager.step() after them instead of attaching)"
            )

    def _stacks(self) -> dict[str, nn.Parameter]:
        """Return every parameter of the mixtures by its name, gates included."""
        return {f"{name}.{key}".lstrip("."): p for name, m in self.layers.items() for key, p in m.named_parameters()}

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: Mapping[str, object]) -> None:
        if _only_makes_state(optimizer, kwargs):
            return
        if self._is_first:
            self._check_held(optimizer)  # fully_shard() after attach() replaces the parameters by others
        self._is_first = False
        # Fused optimizers run under a GradScaler even when they skip the update inside their kernel.
        found_inf = getattr(optimizer, "found_inf", None)
        lr = self._learning_rate(optimizer) if self.rate.schedule == "lr" else None
        if found_inf is None or not self._reads_found_inf:
            self._step(lr, unless=found_inf)
        elif not bool(found_inf):
            self._step(lr)


def _unwrapped(optimizer: object) -> Optimizer:
    """Return the optimizer that takes the steps, without its wrappers."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ValueError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer; attach the averager to the optimizer before "
            "something wraps it"
        )
    return optimizer


def _only_makes_state(optimizer: Optimizer, kwargs: Mapping[str, object]) -> bool:
    """Return True for the step by which torch.distributed.checkpoint makes the state of an optimizer that has none."""
    # It calls step(closure=None) with every learning rate at 0, only so that Adam allocates its moments. No training
    # step looks like that: a loop calls step() or step(closure), and a rate of 0 in all groups would train nothing.
    return kwargs == {"closure": None} and not any(group.get("lr") for group in optimizer.param_groups)


def _check_stacks(layers: dict[str, Mixture]) -> None:
    """Raise ValueError if a mixture holds a parameter that is not a stack of its experts, such as an adapter's."""
    for name, layer in layers.items():
        for key, parameter in layer.experts.named_parameters():
            if parameter.shape[:1] != (layer.num_experts,):
                raise ValueError(
                    f"{name}.experts.{key} is of shape {tuple(parameter.shape)}, not a stack of {layer.num_experts} "
                    "experts; remove what was put into the mixture after upcycle(), such as LoRA"
                )


def _check_share_rate(share_rate: float, layers: dict[str, Mixture]) -> None:
    """Raise ValueError unless 0 <= β <= (N-1)/N. Above that the averaging would overshoot the mean."""
    # The mixture with the fewest experts has the lowest limit.
    name, fewest = min(layers.items(), key=lambda item: item[1].num_experts)
    count = fewest.num_experts
    limit = (count - 1) / count
    if not 0 <= share_rate <= limit:
        where = f" in {name}" if any(layer.num_experts > count for layer in layers.values()) else ""
        raise ValueError(f"share_rate={share_rate} with {count} experts{where}; choose 0 to (N-1)/N = {limit}")
