"""Point-cloud operations: exact, differentiable, on any device. PC_EWA_OPS selects the backend (see dispatch.py)."""

from pc_ewa.ops.chamfer import chamfer_distance, nearest_distances
from pc_ewa.ops.dispatch import backend
from pc_ewa.ops.neighbours import ball_query, group, knn, three_interpolate, three_nn
from pc_ewa.ops.sampling import farthest_point_sample, gather_points

__all__ = [
    "farthest_point_sample",
    "knn",
    "ball_query",
    "gather_points",
    "group",
    "three_nn",
    "three_interpolate",
    "nearest_distances",
    "chamfer_distance",
    "backend",
]
