"""Typed configs of experiments: a YAML file with `key=value` overrides, validated before the run starts."""

from pc_ewa.config.resolve import DECIDED_BY_DATA, dump, load_experiment, resolve
from pc_ewa.config.sections import Augment, Average, Data, Ewa, Experiment, Model, Probe, SlowFfn, Train

__all__ = [
    "Experiment",
    "Data",
    "Model",
    "Ewa",
    "Average",
    "Augment",
    "SlowFfn",
    "Train",
    "Probe",
    "load_experiment",
    "resolve",
    "dump",
    "DECIDED_BY_DATA",
]
