"""Use of a trained model: loading, prediction, saving and sharing."""

from pc_ewa.inference.clouds import as_inputs
from pc_ewa.inference.folder import save_pretrained
from pc_ewa.inference.hub import push_to_hub
from pc_ewa.inference.load import from_pretrained, load_model
from pc_ewa.inference.predictions import PartPrediction, Prediction, predict, predict_each

__all__ = [
    "load_model",
    "from_pretrained",
    "save_pretrained",
    "push_to_hub",
    "predict",
    "predict_each",
    "as_inputs",
    "Prediction",
    "PartPrediction",
]
