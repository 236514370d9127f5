"""Protocols of evaluation."""

from pc_ewa.eval.accuracy import Accuracy, evaluate_classifier
from pc_ewa.eval.features import extract_features
from pc_ewa.eval.fewshot import FewShot, Fold
from pc_ewa.eval.pretraining import PretrainingLoss, evaluate_pretraining
from pc_ewa.eval.score import Score
from pc_ewa.eval.segmentation import Segmentation, evaluate_segmenter
from pc_ewa.eval.settings import EvalSettings
from pc_ewa.eval.svm import LinearSVMResult, evaluate_linear_svm, linear_svm
from pc_ewa.eval.voting import evaluate_voted

__all__ = [
    "Score",
    "EvalSettings",
    "Accuracy",
    "evaluate_classifier",
    "evaluate_voted",
    "Segmentation",
    "evaluate_segmenter",
    "PretrainingLoss",
    "evaluate_pretraining",
    "extract_features",
    "LinearSVMResult",
    "linear_svm",
    "evaluate_linear_svm",
    "Fold",
    "FewShot",
]
