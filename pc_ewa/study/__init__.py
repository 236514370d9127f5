"""Comparisons: variants of one experiment, each with the same seeds and the same small sweep, and what came out."""

from pc_ewa.study.plan import Plan, load_plan
from pc_ewa.study.runner import Options, check, study

__all__ = ["Options", "Plan", "check", "load_plan", "study"]
