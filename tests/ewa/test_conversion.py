import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pc_ewa.ewa import ExpertFFN, dense_state_dict, expert_layers, merge_experts, upcycle
from pc_ewa.ewa.conversion import select_layers

laws = settings(deadline=None, max_examples=40)
Build = Callable[..., nn.Module]


def spread_out(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in expert_layers(model).values():
            for stack in layer.parameters():
                stack += torch.randn_like(stack)
    return model


def upcycled_blocks(model: nn.Module) -> list[int]:
    return [int(name.split(".")[1]) for name in expert_layers(model)]


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("every-1", [0, 1, 2, 3, 4]),
        ("every-2", [1, 3]),
        ("every-3", [2]),
        ("every-5", [4]),
        ("last-1", [4]),
        ("last-3", [2, 3, 4]),
        ("last-5", [0, 1, 2, 3, 4]),
        ([3, 0], [0, 3]),
        ((4,), [4]),
        (range(1, 3), [1, 2]),
    ],
    ids=str,
)
def test_layers_choose_the_ffns(transformer: Build, layers: str | list[int], chosen: list[int]) -> None:
    assert upcycled_blocks(upcycle(transformer(depth=5), 2, layers)) == chosen


def test_every_second_ffn_is_the_default(transformer: Build) -> None:
    model = upcycle(transformer(depth=5))
    assert upcycled_blocks(model) == [1, 3]
    assert {layer.num_experts for layer in expert_layers(model).values()} == {4}


@laws
@given(st.integers(1, 24), st.integers(1, 24))
def test_every_and_last_agree_with_counting(count: int, number: int) -> None:
    if number <= count:
        assert select_layers(f"every-{number}", count) == [i for i in range(count) if (i + 1) % number == 0]
        assert select_layers(f"last-{number}", count) == list(range(count))[-number:]
    else:
        for layers in (f"every-{number}", f"last-{number}"):
            with pytest.raises(ValueError, match=rf"layers='{layers}' needs more than the {count} FFNs"):
                select_layers(layers, count)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("half", r"layers='half'; choose 'all', 'every-k', 'last-n' or a list of indices"),
        ("every-0", r"layers='every-0'; choose"),
        ("last-", r"layers='last-'; choose"),
        ("every--2", r"layers='every--2'; choose"),
        ("last-5", r"layers='last-5' needs more than the 4 FFNs of the model"),
        ("every-5", r"layers='every-5' needs more than the 4 FFNs of the model"),
        ([], r"layers=\[\]; choose one or more different indices from 0 to 3"),
        ([4], r"layers=\[4\]; choose one or more different indices from 0 to 3"),
        ([-1], r"layers=\[-1\]; choose"),
        ([1, 1], r"layers=\[1, 1\]; choose one or more different"),
    ],
    ids=str,
)
def test_impossible_layers_are_refused_and_leave_the_model(
    transformer: Build, layers: str | list[int], message: str
) -> None:
    model = transformer()
    with pytest.raises(ValueError, match=message):
        upcycle(model, 2, layers)
    assert not expert_layers(model)


@pytest.mark.parametrize("arguments", [{"num_experts": 1}, {"init": "x"}, {"partition": "x"}], ids=str)
def test_impossible_experts_leave_the_model(transformer: Build, arguments: dict) -> None:
    model = transformer()
    with pytest.raises(ValueError, match=r"=(1|'x'); "):
        upcycle(model, **arguments)
    assert not expert_layers(model)


def test_options_reach_every_mixture(transformer: Build) -> None:
    model = upcycle(transformer(), 3, "all", init="independent", partition="sample")
    for layer in expert_layers(model).values():
        assert (layer.num_experts, layer.partition) == (3, "sample")
        assert not torch.equal(layer.experts.fc1.weight[0], layer.experts.fc1.weight[1])


def test_an_ffn_shared_by_two_blocks_is_refused(transformer: Build) -> None:
    model = transformer()
    first, second, *_ = [m for m in model.modules() if hasattr(m, "mlp")]
    second.mlp = first.mlp
    with pytest.raises(ValueError, match=r"^blocks\.0\.mlp is shared"):
        upcycle(model, layers="all")
    assert not expert_layers(model)


def test_upcycling_twice_is_refused(transformer: Build) -> None:
    model = upcycle(transformer())
    with pytest.raises(ValueError, match=r"has mixtures of experts already; merge_experts\(\) it before"):
        upcycle(model)
    assert upcycled_blocks(upcycle(merge_experts(model), 2, "last-1")) == [3]


def test_a_model_without_ffn_is_told_what_was_looked_for() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Conv1d(8, 4, 1))
    with pytest.raises(ValueError, match="has no FFN that upcycle") as caught:
        upcycle(model)
    for word in ("Sequential", "timm Mlp", "torchvision MLPBlock", "transformers", "TransformerEncoderLayer", "linear1",
                 "intermediate", "output.dense", "ffn='pattern'", "predicate"):  # fmt: skip
        assert word in str(caught.value)


def test_what_only_resembles_an_ffn_is_left_alone() -> None:
    squeeze_and_excite = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())
    head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    with_matrix = nn.Sequential(nn.Linear(8, 16), nn.Bilinear(16, 16, 16), nn.Linear(16, 8))
    three = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8))
    model = nn.ModuleList([squeeze_and_excite, head, with_matrix, three])
    with pytest.raises(ValueError, match="has no FFN that upcycle"):
        upcycle(model, layers="all")


class Unusual(nn.Module):
    """An FFN that no rule knows: its first layer makes twice the width, one half gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in, self.w_out = nn.Linear(6, 20), nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.w_in(x).chunk(2, dim=-1)
        return self.w_out(nn.functional.silu(a) * b)


def unusual_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict((f"layer{i}", nn.Sequential(OrderedDict(gated=Unusual()))) for i in range(3)))


@pytest.mark.parametrize(
    ("ffn", "chosen"),
    [
        ("layer1.gated", ["layer1.gated"]),
        ("*.gated", ["layer0.gated", "layer1.gated", "layer2.gated"]),
        ("layer[02].gated", ["layer0.gated", "layer2.gated"]),
        (["layer0.gated", "layer2.*"], ["layer0.gated", "layer2.gated"]),
        (lambda name, module: isinstance(module, Unusual) and "1" not in name, ["layer0.gated", "layer2.gated"]),
        ("*gated*", ["layer0.gated", "layer1.gated", "layer2.gated"]),
        (lambda name, module: "gated" in name, ["layer0.gated", "layer1.gated", "layer2.gated"]),
    ],
    ids=["name", "pattern", "class", "list", "predicate", "pattern with parts", "predicate with parts"],
)
def test_users_own_ffns_by_name_pattern_list_and_predicate(ffn: object, chosen: list[str]) -> None:
    model = unusual_model()
    state, x = copy.deepcopy(model.state_dict()), torch.randn(2, 5, 6)
    expected = model(x)
    upcycle(model, 3, "all", ffn=ffn)  # type: ignore[arg-type]
    assert list(expert_layers(model)) == chosen
    torch.testing.assert_close(model(x), expected)
    merge_experts(model)
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(x), expected)


def test_layers_count_the_chosen_ffns_only() -> None:
    assert list(expert_layers(upcycle(unusual_model(), 2, "last-1", ffn="*gated*"))) == ["layer2.gated"]


@pytest.mark.parametrize(
    ("ffn", "message"),
    [
        ("blocks.*", r"ffn='blocks\.\*' names no module of Sequential; its names are model\.named_modules\(\)"),
        (["a", "b"], r"ffn=\['a', 'b'\] names no module of Sequential"),
        (lambda name, module: False, r"the predicate <function .*> accepted no module of Sequential"),
    ],
    ids=["pattern", "list", "predicate"],
)
def test_a_choice_that_fits_nothing_is_refused(ffn: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upcycle(unusual_model(), ffn=ffn)  # type: ignore[arg-type]


def test_dense_state_dict_is_the_merged_models_and_leaves_the_model_training(transformer: Build) -> None:
    model = spread_out(upcycle(transformer(), 3))
    layout, before = repr(model), {key: value.clone() for key, value in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    state = dense_state_dict(model)
    assert repr(model) == layout
    assert [id(p) for p in model.parameters()] == identities
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(module.training for module in model.modules())
    merged = merge_experts(copy.deepcopy(model)).state_dict()
    assert list(state) == list(merged) == list(transformer().state_dict())
    assert all(torch.equal(state[key], value) for key, value in merged.items())
    with torch.no_grad():
        model.embed.weight.add_(1)
    assert torch.equal(state["embed.weight"], before["embed.weight"]), "the snapshot must not move with the model"


def test_dense_state_dict_of_a_dense_model_is_its_own(transformer: Build) -> None:
    model = transformer()
    state = dense_state_dict(model)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_fuse_protocol_of_timm(transformer: Build) -> None:
    """As `timm.utils.reparameterize_model` does it: every child with a `fuse` is replaced by what that returns."""
    model = spread_out(upcycle(transformer(), 3, "all")).eval()
    x = torch.randn(2, 7, 3).double()
    expected = model(x)

    def fuse_children(module: nn.Module) -> None:
        for name, child in module.named_children():
            if hasattr(child, "fuse"):
                setattr(module, name, child.fuse())
            fuse_children(child)

    fuse_children(model)
    assert repr(model) == repr(transformer().eval())
    assert torch.equal(model(x), expected)


def test_deepcopy_of_an_upcycled_model_is_independent(transformer: Build) -> None:
    model = spread_out(upcycle(transformer(), 3))
    twin = copy.deepcopy(model)
    x = torch.randn(2, 7, 3).double()
    outputs = []
    for each in (model, twin):
        torch.manual_seed(1)
        outputs.append(each(x))
    assert torch.equal(*outputs)
    merge_experts(twin)
    assert upcycled_blocks(model) == [1, 3]
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}


def test_state_dict_of_an_upcycled_model_loads_into_another(transformer: Build) -> None:
    model, other = spread_out(upcycle(transformer(), 3)), upcycle(transformer(seed=1), 3)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 7, 3).double()
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_merging_inside_a_wrapper_and_merging_twice(transformer: Build) -> None:
    wrapper = nn.ModuleDict({"student": nn.Sequential(upcycle(transformer(), 3)), "other": nn.Linear(2, 2)})
    layout = repr(transformer())
    merge_experts(merge_experts(wrapper))
    assert not expert_layers(wrapper)
    assert repr(wrapper["student"][0]) == layout


def test_a_bare_mixture_cannot_be_merged_in_place() -> None:
    layer = ExpertFFN(nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match=r"is itself one mixture; ffn = model\.fuse\(\) returns its merged FFN"):
        merge_experts(layer)


def test_frozen_ffns_stay_frozen_there_and_back(transformer: Build) -> None:
    model = transformer()
    model.blocks[1].mlp.requires_grad_(False)
    upcycle(model, 3)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"blocks.1.mlp.experts.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    merge_experts(model)
    assert all(p.requires_grad == ("blocks.1.mlp" not in name) for name, p in model.named_parameters())


def test_modes_are_kept_there_and_back(transformer: Build) -> None:
    for training in (True, False):
        model = upcycle(transformer().train(training), 2)
        assert all(module.training is training for module in model.modules())
        assert all(module.training is training for module in merge_experts(model).modules())


def test_bf16_autocast_through_a_whole_model(transformer: Build) -> None:
    model = upcycle(transformer().float(), 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 7, 3)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
