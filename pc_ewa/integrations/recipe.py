"""Recipe: the arguments of upcycle and ExpertAverager given to an integration, and their use in it."""

from inspect import signature
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pc_ewa.errors import ConfigError, TrainingError
from pc_ewa.ewa import ExpertAverager, dense_state_dict, expert_layers, has_gate, upcycle
from pc_ewa.ewa.sharding import is_sharded
from pc_ewa.validation import arguments_of, nearest

# The trainer passes the model. A gate is not allowed, because gated mixtures cannot be merged.
_DECIDED_ELSEWHERE = ("model", "gate")


class Recipe:
    """Settings of a training with EWA: any argument of `upcycle` and of `ExpertAverager`, by its name.

    Args:
        arguments: the arguments that were given. The others keep their defaults.
        upcycles: True if arguments of `upcycle` are allowed.

    Raises:
        ConfigError: an unknown argument. The message has the closest known one.
    """

    def __init__(self, arguments: dict[str, Any], upcycles: bool = True) -> None:
        functions = (upcycle, ExpertAverager) if upcycles else (ExpertAverager,)
        known = {name for each in functions for name in signature(each).parameters}.difference(_DECIDED_ELSEWHERE)
        for name in arguments:
            if name not in known:
                raise ConfigError(f"unknown argument {name!r} of EWA; {nearest(name, known)}")
        self.arguments = arguments

    def upcycle(self, model: nn.Module) -> nn.Module:
        """Upcycle a model, unless it has mixtures already. Return the model.

        Raises:
            TrainingError: the model has gated mixtures, which cannot be merged, or another number of experts than
                `num_experts`.
            ValueError: as in `upcycle`.
        """
        if has_gate(model):
            raise TrainingError("the model has gated mixtures, which cannot be merged; train it in a custom loop")
        found = {layer.num_experts for layer in expert_layers(model).values()}
        if not found:
            return upcycle(model, **arguments_of(upcycle, self.arguments))
        wanted = self.arguments.get("num_experts")
        if wanted is not None and found != {wanted}:
            raise TrainingError(f"num_experts={wanted}, but the model was upcycled with {min(found)}; leave one out")
        return model

    def averager(self, model: nn.Module, optimizers: list[Optimizer], total_steps: int, done: int) -> ExpertAverager:
        """Attach an averager that has seen `done` steps to the optimizer that holds the experts, and return it.

        Raises:
            ValueError: as in `ExpertAverager` and its `attach`.
        """
        arguments = {"total_steps": max(1, total_steps)} | arguments_of(ExpertAverager, self.arguments)
        averager = ExpertAverager(model, **arguments)
        averager.load_state_dict({"steps_done": done})
        stacks = {id(stack) for layer in averager.layers.values() for stack in layer.parameters()}
        holders = [o for o in optimizers if any(not stacks.isdisjoint(map(id, g["params"])) for g in o.param_groups)]
        # If no optimizer holds the experts, attach() raises the error that explains it.
        return averager.attach((holders or optimizers)[0])


def summary(averager: ExpertAverager) -> dict[str, float]:
    """Return the values to log: the share rate of the latest averaging, and the mean spread of the mixtures."""
    measured = averager.statistics().values()
    return {
        "ewa_share_rate": fmean(layer.share_rate for layer in measured),
        "ewa_spread": fmean(layer.spread for layer in measured),
    }


def with_dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the experts under their keys, and the merged weights under the keys of the dense model.

    The upcycled and the dense model can both load the result.

    Raises:
        TrainingError: the model is sharded, and one process alone cannot save it.
    """
    if is_sharded(model):
        raise TrainingError(
            "the model is sharded, and the process that saves has only a part of it; call "
            "pc_ewa.ewa.whole_copy(model) on all processes, and save the copy"
        )
    return dense_state_dict(model) | model.state_dict()
