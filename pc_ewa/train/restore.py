"""Restore a model and its data from a checkpoint file."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pc_ewa.config import Experiment, load_experiment, resolve
from pc_ewa.data import DATASETS
from pc_ewa.errors import CheckpointError
from pc_ewa.models import create_model
from pc_ewa.models.checkpoints.bounds import no_larger_than, refuse_depth
from pc_ewa.models.checkpoints.keys import COUNTER, fit_head, rename_keys
from pc_ewa.models.checkpoints.read import check_finite, read_content
from pc_ewa.streams import stream
from pc_ewa.text import printable
from pc_ewa.train.batches import INIT
from pc_ewa.train.objectives import Pretrain, create_objective
from pc_ewa.train.restored import Restored, Split
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.train.setup import put_experts
from pc_ewa.train.splits import load_splits
from pc_ewa.yaml_config import apply_overrides

__all__ = ["Restored", "Split", "restore", "untrained"]


def restore(
    path: str | Path,
    config: str | None = None,
    overrides: list[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Restored:
    """Build the model of a checkpoint and load all its weights.

    Args:
        path: the checkpoint.
        config: YAML file, for checkpoints that hold no config of pc-ewa. None takes the config in the checkpoint.
        overrides: `key=value`, such as "data.root=/data".
        class_names: the classes, for checkpoints that do not name them. None reads them from the dataset; its files
            are not needed if its classes are published.

    Raises:
        CheckpointError: a file that is missing, damaged, without a config, or of another architecture.
        ConfigError: a wrong config or override.
    """
    content = read_content(path)
    if config:
        experiment = load_experiment(config, overrides)
    elif isinstance(content.get("config"), dict):
        experiment = resolve(apply_overrides(content["config"], overrides or []))
    else:
        raise CheckpointError(f"{path} holds no config; name one with --config CONFIG.yaml")
    # A config in a hostile file could ask for a model of any size. Its depth and its memory are bounded by the weights
    # that the file really has, before anything is allocated.
    refuse_depth(experiment.model.arguments, len(content["base_model"]), path)
    with no_larger_than(content["base_model"].values(), path):
        restored = _untrained(experiment, content, class_names)
    model = restored.model
    weights = rename_keys(content["base_model"], model.state_dict())
    if experts := [len(value) for key, value in weights.items() if ".experts." in key and value.dim()]:
        asked = experiment.ewa.arguments["num_experts"] if experiment.ewa else 0
        if asked > max(experts):
            raise CheckpointError(f"{path} does not fit ewa.num_experts={asked} of its config: it has {max(experts)}")
        # After the dense model is built, as in `build`: experts are copies of its FFNs, and the loaded weights replace
        # them.
        put_experts(model, experiment)
    weights, note = fit_head(weights, model)
    check_finite(weights, path)
    # `num_batches_tracked` is absent from some published files, and evaluation does not use it.
    weights |= {k: v for k, v in model.state_dict().items() if k.endswith(COUNTER) and k not in weights}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).split(":", 1)[-1], 200, placeholder=" ...")
        raise CheckpointError(f"{path} does not fit {experiment.model.name} as configured: {reason}") from None
    if note and class_names is not None:
        raise CheckpointError(f"{path} has more classes than the {len(class_names)} that were named; name them all")
    if note:
        restored.notes.append(note)
    run = RunFolder(Path(path).parent.parent)
    if isinstance(progress := content.get("progress"), dict) and run.config_path.is_file() and not run.is_finished:
        restored.notes.append(
            f"{run.path} has not come to its end, this is step {printable(str(progress.get('step')))}; the command "
            "that began it goes on"
        )
    if "averaged_models" in content and experiment.average:
        restored.notes.append(f"averaged weights ({experiment.average.kind}), which the run reports, not the live ones")
    return restored


def untrained(config: str, overrides: list[str] | None = None) -> Restored:
    """Build the model of a config with the initial weights of its seed. `init_from` and `tokenizer` are not loaded."""
    return _untrained(load_experiment(config, overrides), {})


def _untrained(experiment: Experiment, content: dict[str, Any], class_names: Sequence[str] | None = None) -> Restored:
    decided, names, clouds = (content.get(key) for key in ("model_arguments", "class_names", "clouds"))
    for key, value, kind in (
        ("model_arguments", decided, dict),
        ("class_names", names, list),
        ("clouds", clouds, dict),
    ):
        if value is not None and not isinstance(value, kind):
            raise CheckpointError(f"the checkpoint's {key} is a {type(value).__name__}, not a {kind.__name__}: damaged")
    if not all(isinstance(text, str) for text in [*(decided or {}), *(names or [])]):
        raise CheckpointError("the checkpoint's class_names or model_arguments are not named by text: damaged")
    if class_names is None and names is None:
        class_names, clouds = _published(experiment)
    if class_names is not None:
        argument = {"classify": "num_classes", "segment": "num_categories"}.get(str(experiment.task))
        decided, names = {argument: len(class_names)} if argument else {}, list(class_names)
    elif decided is None or names is None or _model_in(content) != experiment.model.name:
        objective = create_objective(experiment)
        if isinstance(objective, Pretrain):  # it uses no label: its data need not be here, for an SVM on other data
            decided, names = {}, []
        else:
            splits = load_splits(experiment.data, experiment.seed)
            decided, names, clouds = (
                objective.model_arguments(splits),
                list(splits.train.class_names),
                objective.about(splits),
            )
    torch.manual_seed(stream(experiment.seed, INIT))
    model = create_model(experiment.model.name, **experiment.model.arguments, **decided)
    return Restored(experiment, list(names), decided, model, clouds or {}, content.get("data"))


def _published(experiment: Experiment) -> tuple[Sequence[str] | None, dict[str, Any] | None]:
    """Return the classes and the result of `Objective.about`, if the experiment's dataset publishes both.

    Returns (None, None) otherwise, and for a pre-training, which uses no labels.
    """
    dataset = DATASETS[experiment.data.name]
    published = dataset.published
    if published is None or isinstance(create_objective(experiment), Pretrain):
        return None, None
    num_points = experiment.data.arguments.get("stored_points", published.num_points)
    about: dict[str, Any] = {"num_points": num_points, "up_axis": published.up_axis}
    if dataset.parts:
        about["parts_of"] = [[*dataset.parts[name]] for name in published.class_names]
    return published.class_names, about


def _model_in(content: dict[str, Any]) -> object:
    """Return the model name in a checkpoint. Its `model_arguments` are valid for that model only.

    Returns None if the file has no config of pc-ewa.
    """
    try:
        return content["config"]["model"]["name"]
    except (KeyError, TypeError):
        return None
