"""EWA in a loop of one's own: what would make it do nothing, or something else, is refused or warned of."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc_ewa.ewa import ExpertAverager, expert_layers, merge_experts, upcycle

Build = Callable[..., nn.Module]


def attached(model: nn.Module, optimizer: Any, **options: Any) -> ExpertAverager:
    return ExpertAverager(model, 0.3, "constant", **options).attach(optimizer)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 5, 3, generator=generator).double()).square().sum().backward()
        optimizer.step()


# The optimizer


def test_an_optimizer_of_before_upcycle_is_refused_with_the_counts(transformer: Build) -> None:
    model = transformer()
    optimizer = sgd(model)
    upcycle(model, 2, "all")
    with pytest.raises(ValueError, match=r"^16 of 16 .*blocks\.0\.mlp\.experts\.fc1\.weight.*after upcycle\(\)"):
        attached(model, optimizer)


def test_an_optimizer_of_another_model_is_refused(transformer: Build) -> None:
    model, other = (upcycle(transformer(), 2) for _ in range(2))
    with pytest.raises(ValueError, match=r"^8 of 8 "):
        attached(model, sgd(other))


def test_an_optimizer_that_lacks_some_experts_is_refused(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    some = [p for name, p in model.named_parameters() if "blocks.3.mlp" not in name]
    with pytest.raises(ValueError, match=r"^4 of 8 .*blocks\.3\.mlp"):
        attached(model, torch.optim.SGD(some, 0.1))


def test_frozen_experts_may_be_absent_and_groups_may_be_many(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    for parameter in expert_layers(model)["blocks.1.mlp"].parameters():
        parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    averager = attached(model, torch.optim.SGD([{"params": trained[::2]}, {"params": trained[1::2]}], 0.1))
    assert averager.steps_done == 0


def test_a_group_added_later_counts(transformer: Build) -> None:
    model = transformer()
    optimizer = sgd(model)
    upcycle(model, 2)
    optimizer.add_param_group({"params": [p for m in expert_layers(model).values() for p in m.parameters()]})
    attached(model, optimizer)


def test_experts_that_are_all_frozen_are_warned_of(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    for layer in expert_layers(model).values():
        layer.requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        attached(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))


class Wrapped(torch.optim.Optimizer):
    """Wraps as accelerate's AcceleratedOptimizer does: a subclass that never ran its parent's __init__."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)


def test_a_wrapped_optimizer_is_unwrapped(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    optimizer = Wrapped(Wrapped(sgd(model)))
    averager = attached(model, optimizer)
    optimizer.step()
    assert averager.steps_done == 1


@pytest.mark.parametrize("wrong", [object(), None, nn.Linear(1, 1), Wrapped(None)], ids=lambda w: type(w).__name__)  # type: ignore[arg-type]
def test_what_is_not_an_optimizer_is_refused_in_one_line(transformer: Build, wrong: object) -> None:
    with pytest.raises(ValueError, match=r"is not a torch\.optim\.Optimizer"):
        attached(upcycle(transformer(), 2), wrong)


def test_a_merged_model_stops_the_old_optimizer(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    optimizer = sgd(model)
    attached(model, optimizer)
    train(model, optimizer)
    merge_experts(model)
    with pytest.raises(ValueError, match=r"merged.*new optimizer"):
        train(model, optimizer)
    train(model, sgd(model))


def test_merging_a_copy_leaves_the_training_model_alone(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    optimizer = sgd(model)
    averager = attached(model, optimizer)
    merge_experts(copy.deepcopy(model))
    train(model, optimizer)
    assert averager.steps_done == 1


# Resuming


def test_a_resumed_loop_goes_on_in_its_ramp(transformer: Build) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, ExpertAverager]:
        torch.manual_seed(0)
        model = upcycle(transformer(), 2)
        optimizer = sgd(model, 0.01)
        return model, optimizer, ExpertAverager(model, 0.3, "linear", total_steps=6)

    torch.manual_seed(1)
    model, optimizer, averager = start()
    averager.attach(optimizer)
    train(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), averager.state_dict()))
    torch.manual_seed(2)
    train(model, optimizer, 3)

    again, its_optimizer, its_averager = start()
    for part, state in zip((again, its_optimizer, its_averager), saved, strict=True):
        part.load_state_dict(state)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        its_averager.attach(its_optimizer)
    torch.manual_seed(2)
    train(again, its_optimizer, 3)
    assert its_averager.steps_done == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_fresh_averager_on_an_optimizer_that_has_stepped_warns(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    with pytest.warns(UserWarning, match=r"load_state_dict"):
        attached(model, optimizer)


@pytest.mark.parametrize(
    "state", [{}, {"steps": 3}, {"steps_done": -1}, {"steps_done": 2.5}, {"steps_done": True}], ids=str
)
def test_a_state_that_is_not_one_is_refused(transformer: Build, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not the state of an averager"):
        ExpertAverager(upcycle(transformer(), 2), 0.3, "constant").load_state_dict(state)


# Tied parameters


class Tied(nn.Module):
    """Two FFNs, of which parameters may be tied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(2))
        self.head = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def tie(model: Tied, one: str, other: str) -> Tied:
    module, _, name = other.rpartition(".")
    setattr(model.get_submodule(module), name, model.get_parameter(one))
    return model


@pytest.mark.parametrize("layers", ["all", [0], [1]], ids=str)
@pytest.mark.parametrize(
    ("one", "other"), [("a.0.weight", "b.0.weight"), ("a.2.bias", "b.2.bias"), ("a.0.bias", "b.0.bias")]
)
def test_ffns_that_share_a_parameter_are_refused(one: str, other: str, layers: str | list[int]) -> None:
    model = tie(Tied(), one, other)
    with pytest.raises(ValueError, match=f"{one} and {other} are one parameter"):
        upcycle(model, 2, layers)
    assert not expert_layers(model)


def test_a_parameter_tied_to_a_head_is_refused_and_one_tied_outside_of_ffns_is_not() -> None:
    with pytest.raises(ValueError, match=r"b\.0\.weight and head\.weight"):
        upcycle(tie(Tied(), "b.0.weight", "head.weight"), 2, [1])
    upcycle(tie(Tied(), "b.0.weight", "head.weight"), 2, [0])


def test_a_parameter_twice_in_one_ffn_is_refused() -> None:
    model = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))})
    model["mlp"][2].weight = model["mlp"][0].weight
    with pytest.raises(ValueError, match=r"mlp\.0\.weight and mlp\.2\.weight"):
        upcycle(model, 2, "all", ffn="mlp")


@pytest.mark.parametrize("names", [("mlp", "ffn"), ("a", "b")], ids=" ".join)
def test_one_ffn_under_two_names_of_one_host_is_refused(names: tuple[str, str]) -> None:
    ffn = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    model = nn.ModuleDict(dict.fromkeys(names, ffn))
    with pytest.raises(ValueError, match=f"{names[0]} is shared"):
        upcycle(model, 2, "all")
    with pytest.raises(ValueError, match="shared"):
        upcycle(nn.Sequential(ffn, ffn), 2, "all")


# Averagers.


def test_a_second_averager_of_the_same_experts_is_refused(transformer: Build) -> None:
    model = upcycle(transformer(), 2)
    optimizer = sgd(model)
    first = attached(model, optimizer)
    with pytest.raises(ValueError, match=r"another averager.*detach\(\)"):
        attached(model, optimizer)
    first.detach()
    attached(model, optimizer)


@pytest.mark.parametrize(
    "wrong", [{"share_rate": "0.3"}, {"share_rate": None}, {"ramp": "1"}, {"every": 1.5}, {"stop": None}], ids=str
)
def test_settings_of_a_wrong_type_are_refused(transformer: Build, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        ExpertAverager(upcycle(transformer(), 2), schedule="constant", total_steps=9, **wrong)


@pytest.mark.parametrize("count", ["4", 2.5, None])
def test_a_number_of_experts_of_a_wrong_type_is_refused(transformer: Build, count: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_experts="):
        upcycle(transformer(), count)


@pytest.mark.parametrize("state", [None, [], 3])
def test_a_state_that_is_no_mapping_is_refused(transformer: Build, state: Any) -> None:
    with pytest.raises(ValueError, match="is not the state of an averager"):
        ExpertAverager(upcycle(transformer(), 2), 0.3, "constant").load_state_dict(state)


def test_a_loop_without_an_averager_is_told_at_the_merge(transformer: Build) -> None:
    """Experts that were never averaged lie apart, and their mean is another function."""
    model = upcycle(transformer(), 2, "all")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train(model, optimizer)
    with pytest.warns(UserWarning, match="4 of 4 mixtures were trained here without averaging") as caught:
        merge_experts(model)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_experts(upcycle(transformer(), 2, "all"))  # not trained here
        model = upcycle(transformer(), 2, "all")
        averager = ExpertAverager(model, 0.0, "constant")
        train(model, torch.optim.SGD(model.parameters(), 0.1))
        averager.step()  # β = 0 on purpose
        merge_experts(model)


def test_an_attached_averager_is_not_called_too(transformer: Build) -> None:
    model = upcycle(transformer(), 2, "all")
    averager = ExpertAverager(model, 0.3, "constant").attach(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="attached"):
        averager.step()
    averager.detach()
    averager.step()
    assert averager.steps_done == 1


def test_more_steps_than_planned_are_told_once(transformer: Build) -> None:
    model = upcycle(transformer(), 2, "all")
    averager = ExpertAverager(model, 0.3, total_steps=np.int64(2))  # as numpy counts batches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        averager.step()
        averager.step()
    with pytest.warns(UserWarning, match="total_steps=2"):
        averager.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        averager.step()
