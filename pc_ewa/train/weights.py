"""What a run starts from: weights and tokenizer; what is wrong with them is told before any data is read."""

from pathlib import Path

from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.models import MODELS, load_pretrained
from pc_ewa.models.point_bert import PointBERT


def check_initial_weights(experiment: Experiment) -> None:
    """Check the files that an experiment starts from, and that its model takes a tokenizer and experts.

    Raises:
        ConfigError: Point-BERT without a tokenizer, or with two; a tokenizer, experts or a gate for a model that takes
            none.
        CheckpointError: no such file.
    """
    name, start, tokenizer = experiment.model.name, experiment.init_from, experiment.tokenizer
    if name == "point_bert" and tokenizer and start:
        raise ConfigError(f"init_from={start} brings its own tokenizer; leave out tokenizer")
    if name == "point_bert" and not tokenizer and not start:
        raise ConfigError(
            "tokenizer is missing: point_bert predicts the tokens of a trained dvae; train one with "
            "configs/pretrain/dvae_shapenet55.yaml and set tokenizer=CHECKPOINT"
        )
    if name != "point_bert" and tokenizer:
        raise ConfigError(f"tokenizer={tokenizer}, but model.name={name}; only point_bert has one")
    if experiment.ewa and not hasattr(MODELS[name], "expert_ffns"):
        raise ConfigError(f"ewa with model.name={name}, which has no FFN for experts; set ewa=null")
    if experiment.ewa and experiment.ewa.arguments["gate"] and name == "point_bert":
        raise ConfigError(
            "ewa.gate with model.name=point_bert, whose momentum encoder follows merged experts, and gated ones do not "
            "merge; set ewa.gate=null"
        )
    for key, path in (("init_from", start), ("tokenizer", tokenizer)):
        if path and not Path(path).is_file():
            raise CheckpointError(f"{key}={path} is no file; check the path of the checkpoint, or train it first")


def load_initial_weights(model: nn.Module, experiment: Experiment) -> list[str]:
    """Load what the experiment starts from, and say what came of it.

    Raises:
        CheckpointError: a file that does not fit.
    """
    notes = []
    if experiment.tokenizer and isinstance(model, PointBERT):
        notes.append(f"tokenizer: {experiment.tokenizer}: {load_pretrained(experiment.tokenizer, model.dvae).line}")
        model.load_tokenizer(model.dvae.state_dict())  # its patch encoder is where the backbone's starts from
    if experiment.init_from:
        report = load_pretrained(experiment.init_from, model)
        notes.append(f"weights: {experiment.init_from}\n{report}")
    return notes
