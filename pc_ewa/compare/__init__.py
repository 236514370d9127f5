"""Comparisons of variants of one experiment, each with the same seeds and the same sweep."""

from pc_ewa.compare.plan import Plan, load_plan
from pc_ewa.compare.preflight import check_runs
from pc_ewa.compare.run import Options, compare, outline

__all__ = ["Options", "Plan", "check_runs", "load_plan", "compare", "outline"]
