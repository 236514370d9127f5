"""Test of a module on random tokens: experts may only replace a module that maps each token independently."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class TokenForm(NamedTuple):
    """Layout of a module's tokens: their width C and its axis, -1 for (..., C) or 1 for feature maps (B, C, H, W)."""

    width: int
    axis: int


class _Trial(NamedTuple):
    """A layout of tokens to test a module with, and a shape for it."""

    form: TokenForm
    shape: tuple[int, ...]


def why_not_tokenwise(ffn: nn.Module) -> str | None:
    """Return the reason why a module does not map tokens one by one, as in `find_token_form`.

    None means that it does.
    """
    found = find_token_form(ffn)
    return found if isinstance(found, str) else None


def find_token_form(ffn: nn.Module) -> TokenForm | str:
    """Find the layout in which a module maps tokens one by one, or return the reason why there is none.

    The module itself is not run. The test uses a copy in evaluation mode, in float32 on the CPU, with random weights.
    """
    if next(ffn.parameters(), None) is None:
        return "it has no parameters"
    # A separate generator, and fork_rng for modules that draw: torch's default generator must not advance, so that a
    # run with experts draws the same batches and initial weights as one without.
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
    except Exception as error:  # the copy of an unknown module can raise anything
        return f"a copy of it raises {_in_one_line(error)}"
    # A reason found by running the module is more useful than an error about a shape that it does not take.
    return next((reason for reason in reasons if not reason.startswith("on ")), reasons[0])


def _trials(ffn: nn.Module) -> Iterator[_Trial]:
    """Yield the layouts that the module may take, the likely ones first."""
    convolutions = any(isinstance(module, _ConvNd) for module in ffn.modules())
    for width in _widths(ffn):
        # The number of tokens differs from the width: a module that transposes them cannot pass by coincidence.
        count = 5 if width != 5 else 7
        yield _Trial(TokenForm(width, -1), (2, count, width))
        # Channels come first only for convolutions. A linear layer on such a map would mix tokens.
        if convolutions:
            yield _Trial(TokenForm(width, 1), (2, width, 3, count))
            yield _Trial(TokenForm(width, 1), (2, width, count))


def _widths(ffn: nn.Module) -> list[int]:
    """List the possible widths of tokens: that of the first linear layer, or else each size of a parameter."""
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
        # Each token as a sample with a single token. A tokenwise module gives the same result as on all together.
        apart = tokens.movedim(axis, -1).reshape(-1, *[1] * (tokens.dim() - 2), width).movedim(-1, axis)
        alone = module(apart).movedim(axis, -1).reshape(tokens.movedim(axis, -1).shape).movedim(-1, axis)
    except Exception as error:  # the forward of an unknown module can raise anything
        return f"on {name} {trial.shape} it raises {_in_one_line(error)}"
    scale = together.abs().amax().clamp_min(1e-6)
    # `not <=` instead of `>`: NaN must fail. The tolerance is for other orders of summation in other batch sizes.
    if not (together - alone).abs().amax() <= 1e-3 * scale:
        return "its output for a token depends on other tokens, or on the position of the token"
    return _why_not_in_training(module, tokens)


def _why_not_in_training(module: nn.Module, tokens: Tensor) -> str | None:
    """Return a message about the first buffer that a forward in training writes to. None means that there is none."""
    # `_version` counts the writes in place to a tensor (torch 2.6 to 2.13): it needs no copy, and unlike a comparison
    # of values it also finds a write of the same values.
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
    # Random weights reveal what real ones may hide: a last layer that starts at 0 makes any module look tokenwise.
    trial = copy.deepcopy(ffn)
    on_meta = any(tensor.is_meta for tensor in (*trial.parameters(), *trial.buffers()))
    trial = trial.to_empty(device="cpu").float() if on_meta else trial.to("cpu", torch.float32)
    for parameter in trial.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        drawn = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
        parameter.copy_(drawn / fan_in**0.5)
    for module in trial.modules():  # deepcopy keeps the hooks of the original, which must not see random tokens
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return trial.eval()


def _described(output: object, axis: int) -> str:
    if isinstance(output, Tensor) and output.dim() > 1:
        return f"{output.shape[axis]}"
    return f"a {type(output).__name__}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
