"""Modules that may be computed without being called: those of a known class without hooks."""

from torch import nn


def is_bare(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return True for a module of this very class without hooks, which may be computed without being called.

    Adapters such as LoRA put another class in its place; pruning and weight norm put hooks on it.
    """
    return type(module) is kind and "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Return True if calling the module calls more than its forward: hooks of its own, or of all modules."""
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    of_all = nn.modules.module
    forward = of_all._global_forward_hooks, of_all._global_forward_pre_hooks
    backward = of_all._global_backward_hooks, of_all._global_backward_pre_hooks
    return any(own) or any(forward) or any(backward)
