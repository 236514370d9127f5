"""Point-cloud operations; today plain torch on any device (reference.py), faster backends join behind these names."""

from pc_ewa.ops.reference import chamfer_distance, farthest_point_sample, gather_points, knn

__all__ = ["farthest_point_sample", "knn", "gather_points", "chamfer_distance"]
