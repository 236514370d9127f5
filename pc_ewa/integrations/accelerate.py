"""EWA in a loop of one's own with Hugging Face's accelerate."""

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
    """Average the experts after each step that the optimizer takes, and let accelerate's checkpoints know of it.

        model, optimizer, loader = accelerator.prepare(pc_ewa.upcycle(model), optimizer, loader)
        attach_averager(accelerator, model, optimizer, total_steps=1000, share_rate=0.3)

    `accelerator.save_state` and `load_state` then save and restore the schedule too. While gradients accumulate, the
    optimizer takes no step, and nothing is averaged.

    Args:
        accelerator: of the loop.
        model: upcycled before `accelerator.prepare` and before the optimizer was built; prepared or not.
        optimizer: of the model; prepared or not.
        total_steps: optimizer steps of the whole training, not batches.
        **ewa: arguments of `pc_ewa.ExpertAverager`.

    Returns:
        The averager; `log_values(averager)` is for `accelerator.log`.

    Raises:
        ConfigError: an unknown argument.
        TrainingError: a model without experts.
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
    """Save the merged weights under the model's own keys, as `accelerator.save_model` does; the model trains on.

    Args:
        accelerator: of the loop.
        model: with experts, prepared or not.
        folder: where to.
        **options: of `accelerator.save_model`, such as `max_shard_size`.

    Raises:
        ValueError: as in `merge_experts`.
    """
    merged = merge_experts(whole_copy(accelerator.unwrap_model(model)))
    accelerator.save_model(merged, folder, **options)
