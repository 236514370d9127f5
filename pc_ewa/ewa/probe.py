"""Tries a module on random tokens: experts may only replace one that maps each token by itself."""

import copy

import torch
from torch import Tensor, nn

# Fewer features than this are coordinates or scores, as those that position-bias MLPs map, not tokens.
MIN_FEATURES = 4


def why_not_tokenwise(ffn: nn.Module) -> str | None:
    """Say why a module does not map tokens (..., C) to (..., C) one by one; None if it does.

    The module is not touched: a copy with random weights, in evaluation mode, float32 and on the CPU, is tried. Random
    weights show what the real ones may hide, such as a last layer that starts at zero.
    """
    first = next((module for module in ffn.modules() if type(module) is nn.Linear), None)
    if first is None:
        return None  # there is nothing to try: `Mixture` says what it needs
    width = first.in_features
    # torch's default generator stays as it is: a run with experts draws what it drew before.
    generator = torch.Generator("cpu").manual_seed(0)
    tokens = torch.randn(2, 5, width, generator=generator, device="cpu", dtype=torch.float32)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial = _randomised(ffn, generator)
            together = trial(tokens)
            if not isinstance(together, Tensor) or together.shape != tokens.shape:
                return f"it maps {width} features to {_described(together)}"
            alone = trial(tokens.view(10, 1, width)).view_as(tokens)
    except Exception as error:  # whatever a stranger's forward raises on tokens
        return f"on tokens (2, 5, {width}) it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    scale = together.abs().amax().clamp_min(1e-6)
    if not (together - alone).abs().amax() <= 1e-3 * scale:
        return "its output for a token depends on other tokens, or on where the token stands"
    return None


def _randomised(ffn: nn.Module, generator: torch.Generator) -> nn.Module:
    trial = copy.deepcopy(ffn)
    on_meta = any(tensor.is_meta for tensor in (*trial.parameters(), *trial.buffers()))
    trial = trial.to_empty(device="cpu").float() if on_meta else trial.to("cpu", torch.float32)
    for parameter in trial.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
        drawn = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
        parameter.copy_(drawn / fan_in**0.5)
    for module in trial.modules():  # a copy has the hooks of the original, which are not for random tokens
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return trial.eval()


def _described(output: object) -> str:
    return f"{output.shape[-1]}" if isinstance(output, Tensor) and output.dim() else f"a {type(output).__name__}"
