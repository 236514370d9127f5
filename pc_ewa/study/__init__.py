"""Comparisons: variants of one experiment, each with the same seeds and the same small sweep, and what came out."""

from pc_ewa.study.plan import Plan, load_plan
from pc_ewa.study.preflight import check_runs
from pc_ewa.study.runner import Options, outline, study

__all__ = ["Options", "Plan", "check_runs", "load_plan", "outline", "study"]
