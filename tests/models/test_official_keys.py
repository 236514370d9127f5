"""State_dict keys, their order, shapes and the number of parameters are those of the official code, for every model."""

from typing import Any

import pytest
import torch
from official_keys import KEYS, TINY, official_keys
from torch import nn

from pc_ewa.ewa import merge_experts, upcycle
from pc_ewa.models import MODELS, create_model
from pc_ewa.train.optim import is_decayed


def build(file: str, **arguments: Any) -> nn.Module:
    """Build the model of a file of keys, without memory for its weights."""
    with torch.device("meta"):
        return create_model(file.removesuffix("_tiny"), **TINY.get(file, {}), **arguments)


def shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


def test_every_model_has_a_file_of_its_official_keys() -> None:
    assert {path.stem for path in KEYS.iterdir()} == {*MODELS, *TINY}


@pytest.mark.parametrize("file", [*MODELS, *TINY])
def test_keys_shapes_their_order_and_the_size_are_official(file: str) -> None:
    model, official = build(file), official_keys(file)
    assert shapes(model) == list(official.shapes.items())
    assert sum(parameter.numel() for parameter in model.parameters()) == official.parameters


@pytest.mark.parametrize("name", [name for name in MODELS if hasattr(MODELS[name], "expert_ffns")])
def test_merging_brings_the_official_keys_back(name: str) -> None:
    model = upcycle(build(name, depth=3), 2, "all")
    assert any(".experts." in key for key in model.state_dict())
    assert shapes(merge_experts(model)) == shapes(build(name, depth=3))


def test_scanobjectnn_differs_from_modelnet40_in_the_last_layer_alone() -> None:
    official = official_keys("point_mae_classifier").shapes
    last = {"cls_head_finetune.8.weight": (15, 256), "cls_head_finetune.8.bias": (15,)}
    assert shapes(build("point_mae_classifier", num_classes=15, num_groups=128)) == list((official | last).items())


# Weight decay


def official_exempt(file: str) -> set[str]:
    """Parameters that the official optimizer does not decay: `ndim == 1 or endswith('.bias') or 'token' in name`."""
    buffers = (".running_mean", ".running_var", ".num_batches_tracked")
    parameters = {key: shape for key, shape in official_keys(file).shapes.items() if not key.endswith(buffers)}
    return {key for key, shape in parameters.items() if len(shape) == 1 or key.endswith(".bias") or "token" in key}


def test_weight_decay_spares_what_the_official_one_spares_and_cls_pos() -> None:
    model = build("point_mae_classifier")
    exempt = {name for name, parameter in model.named_parameters() if not is_decayed(name, parameter)}
    official = official_exempt("point_mae_classifier")
    assert len(official) == 104
    assert exempt == official | {"cls_pos"}


def test_weight_decay_spares_the_same_after_upcycling() -> None:
    model = upcycle(build("point_mae_classifier_tiny"), 4, "all")
    exempt = {name.replace(".experts", "") for name, p in model.named_parameters() if not is_decayed(name, p)}
    assert exempt == official_exempt("point_mae_classifier_tiny") | {"cls_pos"}
