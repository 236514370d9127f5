"""Benchmarks: a training step with EWA and without, the point-cloud ops beside other libraries, data."""
