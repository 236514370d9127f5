"""Recipe: the arguments of upcycle and ExpertAverager that a trainer's integration is given, and their uses."""

from inspect import signature
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa import ExpertAverager, dense_state_dict, expert_layers, has_gate, upcycle
from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.validation import arguments_of, nearest

# What a trainer gives, and what it cannot make dense again.
_DECIDED_ELSEWHERE = ("model", "gate")


class Recipe:
    """How a model is trained with EWA: any argument of `upcycle` and of `ExpertAverager`, by its name.

    Args:
        arguments: those given; the others keep their defaults.
        upcycles: whether those of `upcycle` are among them.

    Raises:
        ConfigError: an unknown argument; the message has the nearest one.
    """

    def __init__(self, arguments: dict[str, Any], upcycles: bool = True) -> None:
        functions = (upcycle, ExpertAverager) if upcycles else (ExpertAverager,)
        known = {name for each in functions for name in signature(each).parameters}.difference(_DECIDED_ELSEWHERE)
        for name in arguments:
            if name not in known:
                raise ConfigError(f"unknown argument {name!r} of EWA; {nearest(name, known)}")
        self.arguments = arguments

    def upcycle(self, model: nn.Module) -> nn.Module:
        """Put experts into a model, unless it has them already.

        Raises:
            TrainingError: it has gated mixtures, which do not merge, or another number of experts than was asked for.
            ValueError: as in `upcycle`.
        """
        if has_gate(model):
            raise TrainingError("the model has gated mixtures, which do not merge; train it in a loop of your own")
        found = {layer.num_experts for layer in expert_layers(model).values()}
        if not found:
            return upcycle(model, **arguments_of(upcycle, self.arguments))
        wanted = self.arguments.get("num_experts")
        if wanted is not None and found != {wanted}:
            raise TrainingError(f"num_experts={wanted}, but the model was upcycled with {min(found)}; leave one out")
        return model

    def averager(self, model: nn.Module, optimizers: list[Optimizer], total_steps: int, done: int) -> ExpertAverager:
        """Attach an averager that has seen `done` steps to the optimizer that holds the experts.

        Raises:
            ValueError: as in `ExpertAverager` and its `attach`.
        """
        arguments = {"total_steps": max(1, total_steps)} | arguments_of(ExpertAverager, self.arguments)
        averager = ExpertAverager(model, **arguments)
        averager.load_state_dict({"steps_done": done})
        stacks = {id(stack) for layer in averager.layers.values() for stack in layer.parameters()}
        holders = [o for o in optimizers if any(not stacks.isdisjoint(map(id, g["params"])) for g in o.param_groups)]
        return averager.attach((holders or optimizers)[0])


def summary(averager: ExpertAverager) -> dict[str, float]:
    """Return what a trainer logs: the share rate of the latest averaging, and the mean spread of the mixtures."""
    measured = averager.statistics().values()
    return {
        "ewa_share_rate": fmean(layer.share_rate for layer in measured),
        "ewa_spread": fmean(layer.spread for layer in measured),
    }


def with_dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the experts under their own keys, and the merged FFNs under the host's: either loads.

    Raises:
        TrainingError: a sharded model, which one process alone cannot save.
    """
    if is_sharded(model):
        raise TrainingError(
            "the model is sharded, and the process that saves has a part of it; on all processes, make "
            "pc_ewa.ewa.whole_copy(model), and save that"
        )
    return dense_state_dict(model) | model.state_dict()
