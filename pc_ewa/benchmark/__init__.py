"""Benchmarks: a training step with EWA and without, the point-cloud ops data, runs and files that are disturbed."""
