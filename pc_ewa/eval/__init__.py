"""Protocols of evaluation."""

from pc_ewa.eval.accuracy import Accuracy, evaluate_classifier

__all__ = ["Accuracy", "evaluate_classifier"]
