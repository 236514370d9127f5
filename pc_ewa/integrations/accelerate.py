"""EWA in a custom training loop with Hugging Face's accelerate."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from pc_ewa.errors import TrainingError
from pc_ewa.ewa import ExpertAverager, expert_layers, merge_experts, whole_copy
from pc_ewa.integrations.recipe import Recipe, summary
from pc_ewa.package import missing_package

try:
    from accelerate import Accelerator
except ModuleNotFoundError as error:
    raise missing_package(error, "pc_ewa.integrations.accelerate") or error from None


def attach_averager(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, total_steps: int, **ewa: Any
) -> ExpertAverager:
    """Attach an averager to the optimizer, and register it for accelerate's checkpoints.

        model, optimizer, loader = accelerator.prepare(pc_ewa.upcycle(model), optimizer, loader)
        attach_averager(accelerator, model, optimizer, total_steps=1000, share_rate=0.3)

    The experts are then averaged after each optimizer step. `accelerator.save_state` and `load_state` also save and
    restore the schedule. While gradients accumulate, the optimizer takes no step, and nothing is averaged.

    Args:
        accelerator: the accelerator of the loop.
        model: a model that was upcycled before `accelerator.prepare` and before its optimizer was built. It may be
            prepared or not.
        optimizer: the optimizer of the model, prepared or not.
        total_steps: optimizer steps of the whole training, not batches.
        **ewa: arguments of `pc_ewa.ExpertAverager`.

    Returns:
        The averager. Pass `log_values(averager)` to `accelerator.log`.

    Raises:
        ConfigError: an unknown argument.
        TrainingError: the model has no experts.
        ValueError: as in `ExpertAverager` and its `attach`.
    """
    if not expert_layers(model):
        raise TrainingError("the model has no experts; upcycle() it before its optimizer is built and prepared")
    averager = Recipe(ewa, upcycles=False).averager(model, [optimizer], total_steps, done=0)
    accelerator.register_for_checkpointing(averager)
    return averager


def log_values(averager: ExpertAverager) -> dict[str, float]:
    """Return the share rate and the mean spread of the experts, for `accelerator.log`."""
    return summary(averager)


def save_merged(accelerator: Accelerator, model: nn.Module, folder: str, **options: Any) -> None:
    """Save the merged weights under the keys of the dense model, by `accelerator.save_model`.

    The model keeps its experts and can train on.

    Args:
        accelerator: the accelerator of the loop.
        model: a model with experts, prepared or not.
        folder: the folder to write.
        **options: options of `accelerator.save_model`, such as `max_shard_size`.

    Raises:
        ValueError: as in `merge_experts`.
    """
    merged = merge_experts(whole_copy(accelerator.unwrap_model(model)))
    accelerator.save_model(merged, folder, **options)
