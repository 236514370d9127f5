"""pc-ewa: point-cloud transformers trained with Experts Weights Averaging."""

from pc_ewa import ops
from pc_ewa.data import Clouds, load_dataset
from pc_ewa.errors import CheckpointError, ConfigError, DataError, Error, TrainingError
from pc_ewa.ewa import ExpertAverager, dense_state_dict, merge_experts, upcycle
from pc_ewa.models import create_model, load_pretrained

__all__ = [
    "create_model",
    "load_pretrained",
    "upcycle",
    "ExpertAverager",
    "merge_experts",
    "dense_state_dict",
    "load_dataset",
    "Clouds",
    "ops",
    "Error",
    "ConfigError",
    "DataError",
    "CheckpointError",
    "TrainingError",
]
