"""The contenders of `pc-ewa benchmark model`: models and training steps, ours and in official style."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from pc_ewa.benchmark.official_style import OfficialClassifier
from pc_ewa.benchmark.step import timed_step
from pc_ewa.config import Experiment
from pc_ewa.models import create_model
from pc_ewa.train.distributed import World, has_bf16
from pc_ewa.train.finite import GradientGuard
from pc_ewa.train.loop import train_step
from pc_ewa.train.setup import Setup, build

OFFICIAL, OFFICIAL_KEPT = "official style", "official style, freed memory kept"
DENSE, EWA, SAVING = "ours", "ours, EWA", "ours, checkpoint_activations"
BF16 = ", bf16"
NUM_CLASSES = 40

Calls = dict[str, Callable[[], Any]]


def models(experiment: Experiment) -> tuple[nn.Module, nn.Module]:
    """Return our model and the official style's, with the same weights."""
    torch.manual_seed(0)
    model = create_model(experiment.model.name, num_classes=NUM_CLASSES, **experiment.model.arguments).eval()
    official = OfficialClassifier(NUM_CLASSES, experiment.model.arguments).eval()
    official.load_state_dict(model.state_dict())
    return model, official


def training_steps(experiment: Experiment, world: World) -> Calls:
    """Return a function for a training step of each kind, on the same batch."""
    dense = experiment.model_copy(update={"ewa": None})
    setup = official_setup(dense, world)
    official = partial(train_step, setup, dense, world, setup.model, 0)
    kinds = {DENSE: dense, EWA: experiment, SAVING: _with(dense, checkpoint_activations=True)}
    if has_bf16():
        kinds |= {DENSE + BF16: _with(dense, precision="bf16"), EWA + BF16: _with(experiment, precision="bf16")}
    ours = {name: partial(timed_step(kind, world), 0) for name, kind in kinds.items()}
    return {OFFICIAL: official, OFFICIAL_KEPT: official, **ours}


def official_setup(experiment: Experiment, world: World) -> Setup:
    """Set up the same run with the official style's model, and with AdamW in torch's default implementation."""
    setup = build(experiment, world)
    model = OfficialClassifier(setup.model_arguments["num_classes"], experiment.model.arguments)
    model.load_state_dict(setup.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=experiment.train.weight_decay)
    guard = GradientGuard(optimizer, world.device, deferred=False)  # it is what steps the optimizer
    return setup._replace(model=model.train(), optimizer=optimizer, guard=guard)


def _with(experiment: Experiment, **changes: Any) -> Experiment:
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=changes)})
