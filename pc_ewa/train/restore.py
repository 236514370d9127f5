"""From a checkpoint file back to a model and its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pc_ewa.config import Experiment, apply_overrides, load_experiment, resolve
from pc_ewa.errors import CheckpointError
from pc_ewa.eval import Accuracy
from pc_ewa.ewa import expert_layers, merge_experts, routed_experts
from pc_ewa.models import create_model
from pc_ewa.models.official import backbone_state, read_checkpoint, read_weights
from pc_ewa.signatures import choose
from pc_ewa.train.batches import ROUTED, stream
from pc_ewa.train.build import load_splits, put_experts
from pc_ewa.train.checkpoint import save_atomically
from pc_ewa.train.distributed import choose_device
from pc_ewa.train.tasks import TASKS


@dataclass
class Restored:
    """A model with its weights, and the experiment it came from."""

    experiment: Experiment
    class_names: list[str]
    model: nn.Module

    @property
    def mixtures(self) -> int:
        """Number of mixtures of experts in the model."""
        return len(expert_layers(self.model))

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def merge(self) -> None:
        """Merge the mixtures, in place."""
        merge_experts(self.model)

    def save(self, path: str | Path) -> None:
        """Write the weights in the layout of the official files, with config and class names."""
        save_merged(self.model, self.experiment, self.class_names, Path(path))

    def evaluate(self, split: Literal["train", "val", "test"], routed: bool = False) -> Accuracy:
        """Measure on a part of the experiment's dataset; `routed` sends tokens through the experts as in training."""
        splits = load_splits(self.experiment.data, self.experiment.seed)
        clouds = getattr(splits, split)
        if list(clouds.class_names) != self.class_names:
            raise CheckpointError(
                f"the checkpoint knows {len(self.class_names)} classes ({', '.join(self.class_names[:3])}, ...), "
                f"{self.experiment.data.name} has {clouds.num_classes} ({', '.join(clouds.class_names[:3])}, ...)"
            )
        task = choose("task", self.experiment.task, TASKS)(self.experiment)
        device = choose_device(self.experiment.device)
        self.model.to(device).eval()
        if not routed:
            return task.evaluate(self.model, clouds, device)
        torch.manual_seed(stream(self.experiment.seed, ROUTED, 0))
        with routed_experts(self.model):
            return task.evaluate(self.model, clouds, device)


def restore(path: str | Path, config: str | None = None, overrides: list[str] | None = None) -> Restored:
    """Build the model that a checkpoint was saved from and load it, every weight of it.

    Args:
        path: the checkpoint.
        config: YAML file, for checkpoints that hold no config of ours.
        overrides: `key=value`, such as "data.root=/data".

    Raises:
        CheckpointError: a file that is missing, damaged, without a config, or of another architecture.
        ConfigError: a config or override that is wrong.
    """
    content = read_checkpoint(path) if Path(path).suffix != ".safetensors" else {}
    if config:
        experiment = load_experiment(config, overrides)
    elif isinstance(content.get("config"), dict):
        experiment = resolve(apply_overrides(content["config"], overrides or []))
    else:
        raise CheckpointError(f"{path} holds no config; name one with --config CONFIG.yaml")
    names = content.get("class_names") or list(load_splits(experiment.data, experiment.seed).test.class_names)
    model = create_model(experiment.model.name, **experiment.model.arguments, num_classes=len(names))
    weights = backbone_state(read_weights(path))
    if any(".experts." in key for key in weights):
        put_experts(model, experiment)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())[:200]
        raise CheckpointError(f"{path} does not fit {experiment.model.name} as configured: {reason}") from None
    return Restored(experiment, list(names), model)


def save_merged(model: nn.Module, experiment: Experiment, class_names: list[str], path: Path) -> None:
    """Write a dense model under `base_model`, the official files' name for it."""
    config = experiment.model_dump(mode="json")
    save_atomically({"base_model": model.state_dict(), "config": config, "class_names": class_names}, path)
