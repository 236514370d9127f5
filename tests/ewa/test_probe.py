"""Which modules are FFNs: those that map each token by itself, tried on random tokens."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc_ewa.ewa import expert_layers, upcycle
from pc_ewa.ewa.probe import why_not_tokenwise


class Mlp(nn.Module):
    def __init__(self, dim: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TokenMixer(Mlp):
    """MLP-Mixer, GroupViT: the layers run over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SqueezeExcite(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(super().forward(x.mean(1, keepdim=True)))


class SampleMixer(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(0, keepdim=True)


class Positional(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.arange(1, x.shape[1] + 1)[:, None]


class NeedsMore(Mlp):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + residual


class TwoOutputs(Mlp):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class ZeroInitMixer(SqueezeExcite):
    """Its weights hide what it does."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)


NOT_FFNS = {
    "token mixer": TokenMixer,
    "squeeze-excite": lambda: SqueezeExcite(16, 4),
    "mixes samples": SampleMixer,
    "by position": Positional,
    "two arguments": NeedsMore,
    "two outputs": TwoOutputs,
    "zero weights": ZeroInitMixer,
    "coordinates": lambda: Mlp(2, 512),
}


@pytest.mark.parametrize("kind", NOT_FFNS)
def test_what_is_not_an_ffn_is_left_out_and_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"first": Mlp(), "other": NOT_FFNS[kind](), "last": Mlp()})
    with caplog.at_level(logging.INFO, logger="pc_ewa"):
        upcycle(model, 2, "all")
    assert list(expert_layers(model)) == ["first", "last"]
    assert "first, last" in caplog.text
    assert kind == "coordinates" or "other is not" in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in NOT_FFNS if kind != "coordinates"])
def test_what_is_not_an_ffn_is_refused_by_name_and_reason(kind: str) -> None:
    model = nn.ModuleDict({"first": Mlp(), "other": NOT_FFNS[kind]()})
    with pytest.raises(ValueError, match=r"^other \(\w+\) cannot become experts: "):
        upcycle(model, 2, "all", ffn="other")
    assert not expert_layers(model)


def test_every_second_ffn_counts_ffns_alone() -> None:
    model = nn.Sequential(Mlp(2, 512), Mlp(), TokenMixer(), Mlp(), Mlp(3, 64))
    assert list(expert_layers(upcycle(model, 2))) == ["3"]


def test_an_mlp_whose_host_transposes_is_told_by_its_name() -> None:
    model = nn.ModuleDict({"mlp_tokens": Mlp(), "mlp_channels": Mlp()})
    assert list(expert_layers(upcycle(model, 2, "all"))) == ["mlp_channels"]


def test_half_an_ffn_is_refused_with_its_sizes() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))})
    with pytest.raises(ValueError, match=r"^a\.0 \(Linear\) .*4 features to 8"):
        upcycle(model, 2, "all", ffn=["a.0"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_zero_weights_pass(dtype: torch.dtype) -> None:
    ffn = Mlp().to(dtype)
    nn.init.zeros_(ffn.fc2.weight)
    assert why_not_tokenwise(ffn) is None


def test_an_ffn_on_the_meta_device_passes_and_a_mixer_does_not() -> None:
    with torch.device("meta"):
        assert why_not_tokenwise(Mlp()) is None
        assert why_not_tokenwise(TokenMixer()) is not None


def test_dropout_does_not_count_and_the_module_and_the_random_numbers_stay() -> None:
    class Noisy(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    ffn = Noisy().train()
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in ffn.state_dict().items()}
    assert why_not_tokenwise(ffn) is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ffn.training
    assert all(torch.equal(value, state[key]) for key, value in ffn.state_dict().items())


def test_ffn_takes_a_class() -> None:
    model = nn.Sequential(Mlp(), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), Mlp())
    assert list(expert_layers(upcycle(model, 2, "all", ffn=Mlp))) == ["0", "2"]
    with pytest.raises(ValueError, match=r"ffn=LSTM .* no module of Sequential; .*GELU"):
        upcycle(nn.Sequential(nn.GELU()), 2, "all", ffn=nn.LSTM)


def test_a_name_that_fits_nothing_shows_the_nearest() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"mlp": Mlp()})])})
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp"):
        upcycle(model, 2, "all", ffn="block.*.mlp")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_default_dtype_passes(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert why_not_tokenwise(Mlp()) is None
        assert why_not_tokenwise(TokenMixer()) is not None
    finally:
        torch.set_default_dtype(before)


def test_hooks_of_the_user_never_see_the_random_tokens() -> None:
    ffn, seen = Mlp(), []
    ffn.register_forward_hook(lambda module, x, y: seen.append(x))
    ffn.fc1.register_forward_pre_hook(lambda module, x: seen.append(x))
    assert why_not_tokenwise(ffn) is None
    assert seen == []
    ffn(torch.zeros(1, 2, 8))
    assert len(seen) == 2


def test_what_was_left_out_is_told_when_nothing_is_left() -> None:
    with pytest.raises(ValueError, match=r"left out: mlp_tokens \(its name"):
        upcycle(nn.ModuleDict({"mlp_tokens": Mlp()}), 2, "all")


def test_a_name_with_token_in_it_is_no_reason() -> None:
    assert list(expert_layers(upcycle(nn.ModuleDict({"token_ffn": Mlp()}), 2, "all"))) == ["token_ffn"]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
def test_a_wrapped_model_is_refused(wrap: Any) -> None:
    """It would hide which FFNs the model offers, or keep the old parameters."""
    with pytest.raises(ValueError, match=r"wrapped in \w+; upcycle\(\) it first"):
        upcycle(wrap(nn.Sequential(Mlp())), 2, "all")
