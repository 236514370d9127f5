"""The decay groups, and the learning rate over a run."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from pc_ewa import create_model, upcycle
from pc_ewa.config import Train, load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.optim import create_optimizer, learning_rate, official_learning_rate
from pc_ewa.train.setup import build

EXEMPT = {"cls_token", "cls_pos"}


@pytest.fixture
def model() -> nn.Module:
    tiny = create_model("point_mae_classifier", dim=16, depth=2, num_heads=2, encoder_width=8)
    return upcycle(tiny, num_experts=2, layers=[1])


def test_matrices_decay_and_norms_biases_and_tokens_do_not(model: nn.Module) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = create_optimizer(model, Train(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    in_decayed, in_exempt = ([names[id(p)] for p in group["params"]] for group in (decayed, exempt))
    assert sorted(in_decayed + in_exempt) == sorted(names.values())

    modules = dict(model.named_modules())
    norms = {name for name, module in modules.items() if isinstance(module, nn.LayerNorm | nn.BatchNorm1d)}
    wanted = {
        name for name in names.values() if name in EXEMPT or name.endswith(".bias") or name.rpartition(".")[0] in norms
    }
    assert set(in_exempt) == wanted
    # The stacked biases have two axes, as matrices do.
    assert model.get_parameter("blocks.blocks.1.mlp.experts.fc1.bias").dim() == 2
    assert "blocks.blocks.1.mlp.experts.fc1.bias" in in_exempt
    assert "blocks.blocks.1.mlp.experts.fc1.weight" in in_decayed
    assert "encoder.first_conv.0.weight" in in_decayed


def test_cls_pos_can_be_decayed_as_officially_and_nothing_else_changes(model: nn.Module) -> None:
    """The official rule, written out: no decay of vectors, of names that end in .bias, and of those with token."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [create_optimizer(model, Train(), decay).param_groups for decay in (False, True)]
    ours, official = ({names[id(p)] for p in group[0]["params"]} for group in groups)
    assert official - ours == {"cls_pos"}
    assert ours < official
    exempt = {n for n, p in model.named_parameters() if p.ndim == 1 or n.endswith(".bias") or "token" in n}
    assert official == {*names.values()} - exempt


def test_without_gradient_only_decay_moves_the_weights(model: nn.Module) -> None:
    optimizer = create_optimizer(model, Train(lr=0.5, weight_decay=0.1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.get_parameter("norm.weight"), before["norm.weight"], rtol=0, atol=0)
    shrunk = before["pos_embed.0.weight"] * (1 - 0.5 * 0.1)
    torch.testing.assert_close(model.get_parameter("pos_embed.0.weight"), shrunk)


def test_frozen_parameters_are_left_out(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.get_parameter("norm.weight").requires_grad_(True)
    (group,) = create_optimizer(model, Train()).param_groups
    assert len(group["params"]) == 1


def test_the_learning_rate_of_a_small_run_by_hand() -> None:
    train = Train(lr=1.0, min_lr=0.0, warmup=0.25)
    rates = [learning_rate(step, 8, train) for step in range(8)]
    #                    warm-up    cosine at 0, 1/5, ... 1
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.9045085, 0.6545085, 0.3454915, 0.0954915, 0], abs=1e-7)


@given(total=st.integers(1, 400), warmup=st.floats(0, 0.99), lr=st.floats(1e-5, 10), share=st.floats(0, 1))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end(
    total: int, warmup: float, lr: float, share: float
) -> None:
    train = Train(lr=lr, min_lr=share * lr, warmup=warmup)
    warm = round(warmup * total)
    assume(total - warm >= 2)
    rates = [learning_rate(step, total, train) for step in range(total)]
    assert rates[warm] == pytest.approx(lr)
    assert rates[-1] == pytest.approx(train.min_lr, abs=1e-12 * lr)
    slack = 1e-12 * lr
    assert all(a <= b + slack for a, b in itertools.pairwise(rates[: warm + 1]))
    assert all(a >= b - slack for a, b in itertools.pairwise(rates[warm:]))


@given(epochs=st.integers(1, 400), warmup=st.floats(0, 0.99), per_epoch=st.integers(1, 7))
def test_the_official_learning_rate_is_that_of_timm_an_epoch_late(epochs: int, warmup: float, per_epoch: int) -> None:
    """CosineLRScheduler(t_initial=epochs, warmup_t, lr_min, warmup_lr_init, cycle_limit=1), stepped after an epoch."""
    train = Train(lr=1e-3, min_lr=1e-6, warmup=warmup, epochs=epochs)
    warm = round(warmup * epochs)

    def timm(t: int) -> float:
        if t < warm:
            return 1e-6 + t * (1e-3 - 1e-6) / warm
        return 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(math.pi * t / epochs)) if t < epochs else 1e-6

    expected, rate = [], timm(0)
    for epoch in range(epochs + 1):
        expected += [rate] * per_epoch
        rate = timm(epoch)
    rates = [official_learning_rate(step, per_epoch, train) for step in range(len(expected))]
    assert rates == pytest.approx(expected, rel=1e-12)


@given(total=st.integers(1, 50), warmup=st.floats(0, 0.99))
def test_the_learning_rate_never_leaves_its_bounds(total: int, warmup: float) -> None:
    train = Train(lr=1e-3, min_lr=1e-6, warmup=warmup)
    assert all(1e-6 * 0.999 <= learning_rate(step, total, train) <= 1e-3 * 1.001 for step in range(total))


def test_chosen_ffns_of_a_dense_model_learn_more_slowly(toy_config: Path) -> None:
    """The factor is exact: with it a step of plain Adam moves them so much less, and nothing else changes."""
    moved = {}
    for change in ("train.slow_ffn=null", "train.slow_ffn={factor: 0.5, layers: every-2}"):
        experiment = load_experiment(toy_config, ["ewa=null", "train.clip_grad=null", "train.weight_decay=0", change])
        world = World(0, 1, torch.device("cpu"))
        setup = build(experiment, world)
        before = {name: weight.detach().clone() for name, weight in setup.model.named_parameters()}
        train_step(setup, experiment, world, setup.model.train(), 0)
        moved[change] = {name: weight.detach() - before[name] for name, weight in setup.model.named_parameters()}
    plain, slow = moved.values()
    halved = [name for name in plain if plain[name].abs().max() > 0 and not torch.equal(plain[name], slow[name])]
    assert halved
    assert all(".1.mlp." in name for name in halved)  # the second of two blocks
    for name in halved:
        torch.testing.assert_close(slow[name], plain[name] / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [(["train.slow_ffn={factor: 0.5}"], "slow_ffn with ewa"), (["ewa=null", "train.slow_ffn.factor=0"], "factor=0")],
)
def test_a_wrong_slow_ffn_is_one_line(toy_config: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(toy_config, changes)


def test_slow_ffns_that_are_not_there_are_one_line(toy_config: Path) -> None:
    experiment = load_experiment(toy_config, ["ewa=null", "train.slow_ffn={factor: 0.5, layers: last-9}"])
    with pytest.raises(ConfigError, match=r"train\.slow_ffn: layers='last-9'"):
        build(experiment, World(0, 1, torch.device("cpu")))
