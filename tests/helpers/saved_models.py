"""Models with made-up weights, and changes to the folders that they are saved in."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import pc_ewa
from pc_ewa.models.base import Preprocessing

SIZES: dict[str, Any] = {"dim": 12, "depth": 2, "num_heads": 3, "num_groups": 4, "group_size": 4, "encoder_width": 8}

MODEL: dict[str, Any] = {"name": "point_mae_classifier", "num_classes": 3, **SIZES}


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return model.state_dict()


def check_same(model: torch.nn.Module, other: torch.nn.Module) -> None:
    assert list(weights(model)) == list(weights(other))
    for key, value in weights(model).items():
        assert torch.equal(value, weights(other)[key]), key


def made(**more: Any) -> Any:
    torch.manual_seed(0)
    model: Any = pc_ewa.create_model("point_mae_classifier", num_classes=3, **SIZES)
    model.class_names, model.preprocessing = ("a", "b", "Stühle"), Preprocessing(16, 32, up_axis="z")
    for key, value in more.items():
        setattr(model, key, value)
    return model


def diverge(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["norm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors")


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
