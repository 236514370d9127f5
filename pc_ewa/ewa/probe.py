"""Tries a module on random tokens: experts may only replace one that maps each token by itself."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class TokenForm(NamedTuple):
    """What a module takes for tokens: their width C, and the axis of it, -1 for (..., C), 1 for maps (B, C, H, W)."""

    width: int
    axis: int


class _Trial(NamedTuple):
    """One way of giving tokens to a module."""

    form: TokenForm
    shape: tuple[int, ...]


def why_not_tokenwise(ffn: nn.Module) -> str | None:
    """Say why a module does not map tokens one by one, see `find_token_form`; None if it does."""
    found = find_token_form(ffn)
    return found if isinstance(found, str) else None


def find_token_form(ffn: nn.Module) -> TokenForm | str:
    """Find which tokens a module maps one by one, (..., C) to (..., C) or channels first; or say why it does not.

    The module is not touched: a copy with random weights, in evaluation mode, float32 and on the CPU, is tried. Random
    weights show what the real ones may hide, such as a last layer that starts at zero.
    """
    if next(ffn.parameters(), None) is None:
        return "it has no parameters"
    # torch's default generator stays as it is: a run with experts draws what it drew before.
    generator = torch.Generator("cpu").manual_seed(0)
    reasons = []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module = _randomised(ffn, generator)
            for trial in _trials(ffn):
                reason = _why_not(module, trial, generator)
                if reason is None:
                    return trial.form
                reasons.append(reason)
    except Exception as error:  # whatever a stranger's copy raises
        return f"a copy of it raises {_in_one_line(error)}"
    # A module that ran says more of itself than one that was given the wrong shape.
    return next((reason for reason in reasons if not reason.startswith("on ")), reasons[0])


def _trials(ffn: nn.Module) -> Iterator[_Trial]:
    """Give the ways in which the module may want its tokens, the likely ones first."""
    convolutions = any(isinstance(module, _ConvNd) for module in ffn.modules())
    for width in _widths(ffn):
        count = 5 if width != 5 else 7  # never taken for the width
        yield _Trial(TokenForm(width, -1), (2, count, width))
        # Only convolutions say that channels come first; for linear layers it would be a mixing of tokens.
        if convolutions:
            yield _Trial(TokenForm(width, 1), (2, width, 3, count))
            yield _Trial(TokenForm(width, 1), (2, width, count))


def _widths(ffn: nn.Module) -> list[int]:
    """List the widths that the tokens may have: that of the first linear layer, or else any that a parameter has."""
    linear = next((module for module in ffn.modules() if isinstance(module, nn.Linear)), None)
    if linear is not None:
        return [linear.in_features]
    convolution = next((module for module in ffn.modules() if isinstance(module, _ConvNd)), None)
    first = [] if convolution is None else [convolution.in_channels]
    return list(dict.fromkeys(first + [size for p in ffn.parameters() for size in p.shape if size > 1]))


def _why_not(module: nn.Module, trial: _Trial, generator: torch.Generator) -> str | None:
    tokens = torch.randn(trial.shape, generator=generator, device="cpu", dtype=torch.float32)
    (width, axis), name = trial.form, "tokens" if trial.form.axis == -1 else "a map"
    try:
        together = module(tokens)
        if not isinstance(together, Tensor) or together.shape != tokens.shape:
            return f"it maps {width} features to {_described(together, axis)}"
        apart = tokens.movedim(axis, -1).reshape(-1, *[1] * (tokens.dim() - 2), width).movedim(-1, axis)
        alone = module(apart).movedim(axis, -1).reshape(tokens.movedim(axis, -1).shape).movedim(-1, axis)
    except Exception as error:  # whatever a stranger's forward raises on tokens
        return f"on {name} {trial.shape} it raises {_in_one_line(error)}"
    scale = together.abs().amax().clamp_min(1e-6)
    if not (together - alone).abs().amax() <= 1e-3 * scale:
        return "its output for a token depends on other tokens, or on where the token stands"
    return _why_not_in_training(module, tokens)


def _why_not_in_training(module: nn.Module, tokens: Tensor) -> str | None:
    """Name the buffer that a forward in training writes to; None if there is none."""
    before = {name: (buffer, buffer._version) for name, buffer in module.named_buffers()}
    if not before:
        return None
    module.train()(tokens)
    now = {name: (buffer, buffer._version) for name, buffer in module.named_buffers()}
    module.eval()
    written = [name for name in now if name not in before or _changed(before[name], now[name])]
    return f"in training it writes to its {written[0]}, which experts would not share" if written else None


def _changed(before: tuple[Tensor, int], now: tuple[Tensor, int]) -> bool:
    return before[0] is not now[0] or before[1] != now[1]


def _randomised(ffn: nn.Module, generator: torch.Generator) -> nn.Module:
    trial = copy.deepcopy(ffn)
    on_meta = any(tensor.is_meta for tensor in (*trial.parameters(), *trial.buffers()))
    trial = trial.to_empty(device="cpu").float() if on_meta else trial.to("cpu", torch.float32)
    for parameter in trial.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        drawn = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
        parameter.copy_(drawn / fan_in**0.5)
    for module in trial.modules():  # a copy has the hooks of the original, which are not for random tokens
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return trial.eval()


def _described(output: object, axis: int) -> str:
    if isinstance(output, Tensor) and output.dim() > 1:
        return f"{output.shape[axis]}"
    return f"a {type(output).__name__}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
