"""Checkpoint files are read without running code, and damaged ones are refused in one line."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import check_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pc_ewa.errors import CheckpointError
from pc_ewa.models.checkpoints.read import read_content, read_weights

Build = Callable[..., nn.Module]


def test_content_is_alike_whatever_the_layout(tmp_path: Path) -> None:
    weight, about = torch.arange(3.0), {"config": {"seed": 1}, "class_names": ["a", "b"], "epoch": 3}
    for name in ("model", "base_model", "model_state_dict", "state_dict"):
        torch.save({name: {"weight": weight}, **about}, tmp_path / "any.pth")
        content = read_content(tmp_path / "any.pth")
        assert torch.equal(content.pop("base_model")["weight"], weight)
        assert content == about
    save_file({"weight": weight}, tmp_path / "any.safetensors", {key: json.dumps(v) for key, v in about.items()})
    content = read_content(tmp_path / "any.safetensors")
    assert torch.equal(content.pop("base_model")["weight"], weight)
    assert content == about
    torch.save({"weight": weight}, tmp_path / "bare.pth")
    assert list(read_content(tmp_path / "bare.pth")) == ["base_model"]


def test_metadata_of_others_is_kept_as_it_is(tmp_path: Path) -> None:
    metadata = {"format": "pt", "base_model": "some/name", "licence": "CC0", "odd": "[" * 100_000, "list": "[1"}
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata)
    content = read_content(tmp_path / "other.safetensors")
    assert list(content.pop("base_model")) == ["weight"]
    assert content == {key: metadata[key] for key in ("licence", "odd", "list")}


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", ""])
def test_missing_files_and_folders_are_refused(name: str, classifier: Build, tmp_path: Path) -> None:
    check_refused(tmp_path / name, classifier(), "not a file")


@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(part: float, suffix: str, classifier: Build, tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=suffix == "pth")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    check_refused(path, model, "damaged")


@pytest.mark.parametrize(
    "content", [b"<html>404 Not Found</html>", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"hello"], ids=str
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_another_kind_are_refused(content: bytes, suffix: str, classifier: Build, tmp_path: Path) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    check_refused(path, classifier(), "damaged")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from([b"", pickle.PROTO + b"\x02"]))
def test_no_file_whatever_its_bytes_raises_anything_else(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "any.pth"
    path.write_bytes(start + content)
    with pytest.raises(CheckpointError):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ({"model": {}, "epoch": 3}, "base_model"),
        ({"base_model": {"epoch": 3}}, "no weights"),
        ({3: torch.zeros(2)}, "no weights"),
        ([torch.zeros(2)], "a list"),
        (torch.zeros(2), "a Tensor"),
    ],
    ids=["empty", "no tensors", "numbered", "list", "tensor"],
)
def test_files_without_weights_are_refused(content: object, fact: str, classifier: Build, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "no_weights.pth")
    check_refused(tmp_path / "no_weights.pth", classifier(), fact)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
def test_objects_in_a_file_are_named_and_never_run(zipped: bool, classifier: Build, tmp_path: Path) -> None:
    trap, path = Trap(tmp_path / "sprung"), tmp_path / "trap.pth"
    content = {"base_model": classifier().state_dict(), "config": trap}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    check_refused(path, classifier(), f"{os.mkdir.__module__}.mkdir")
    assert not trap.folder.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.folder.exists(), "the trap works"


def test_a_whole_pickled_model_is_refused_by_its_class(classifier: Build, tmp_path: Path) -> None:
    torch.save(copy.deepcopy(classifier()), tmp_path / "model.pth")
    check_refused(tmp_path / "model.pth", classifier(), "pc_ewa.models.point_mae_classifier.PointMAEClassifier")
