"""Experts Weights Averaging (arXiv 2308.06093) for any vision transformer. Nothing here is specific to point clouds."""

from pc_ewa.ewa.averaging import ExpertAverager
from pc_ewa.ewa.conversion import dense_state_dict, expert_layers, merge_experts, upcycle
from pc_ewa.ewa.experts import ExpertFFN, Mixture, routed_experts
from pc_ewa.ewa.gated import Gate, GatedFFN, balance_loss, has_gate
from pc_ewa.ewa.routing import Partition, combine, dispatch, uniform_partition
from pc_ewa.ewa.sharding import expert_shard_placement, whole_copy
from pc_ewa.ewa.stacks import ExpertLinear

__all__ = [
    "upcycle",
    "merge_experts",
    "dense_state_dict",
    "expert_layers",
    "ExpertAverager",
    "expert_shard_placement",
    "whole_copy",
    "Mixture",
    "ExpertFFN",
    "ExpertLinear",
    "routed_experts",
    "Gate",
    "GatedFFN",
    "has_gate",
    "balance_loss",
    "Partition",
    "uniform_partition",
    "dispatch",
    "combine",
]
