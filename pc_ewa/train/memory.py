"""The most memory that a run had at any moment."""

import resource
import sys

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Count from here on, where counting can begin anew: on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes of tensors on the GPU; without one, of the whole process (maximum resident set), torch itself included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
