"""Exported models compute what the networks do, on clouds that are hard for other runtimes too."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small
from torch import nn
from torch.export import ExportedProgram

import pc_ewa
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.ewa import Gate
from pc_ewa.export import OnnxModel, OpenVinoModel, ProgramModel, export, export_onnx
from pc_ewa.export import write as writing
from pc_ewa.export.check import KINDS, largest_difference
from pc_ewa.export.trace import least_points, ready, trace
from pc_ewa.package import MissingPackageError, version_of

pytest.importorskip("onnxruntime")  # optional: it has no wheels for Python 3.10
PREPROCESSING = {"num_points": 48, "sampling": "farthest", "normalize": True}


def trained(name: str) -> nn.Module:
    """A small model whose norms have statistics of their own, and whose scores differ."""
    model = small(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def hundred_clouds(model: nn.Module, seed: int = 1) -> dict[str, list[torch.Tensor]]:
    """25 clouds of each kind, in batches of 1 to 12 and of five sizes."""
    random, least = torch.Generator().manual_seed(seed), least_points(model)
    sizes = [(1, least), (3, 2 * least), (4, 64), (5, 100), (12, 47)]
    clouds = {kind: [draw(batch, n, random) for batch, n in sizes] for kind, draw in KINDS.items()}
    assert sum(len(batch) for kind in clouds.values() for batch in kind) == 100
    return clouds


@pytest.mark.slow
def test_onnx_is_the_model_on_a_hundred_clouds(tmp_path: Path) -> None:
    """A segmenter; the tests of the tool export a classifier."""
    model = trained("point_mae_segmenter").train()
    names = ["box", "cup", "lämp"]
    model.parts_of = ((0, 1), (2,), (3, 4, 5))
    found = export_onnx(model, tmp_path / "a.onnx", class_names=names, preprocessing=PREPROCESSING)
    assert model.training, "the model is the user's"
    assert 0 < max(found.values()) < 1e-5
    exported, reference = OnnxModel(tmp_path / "a.onnx"), ready(model)
    others = [OpenVinoModel(tmp_path / "a.onnx")] if version_of("openvino") else []
    for kind, clouds in hundred_clouds(reference).items():
        for runtime in (exported, *others):
            assert largest_difference(reference, runtime, clouds) < 1e-5, (kind, type(runtime).__name__)
    assert exported.metadata == {
        "pc_ewa": pc_ewa.__version__,
        "model": "point_mae_segmenter",
        "task": "segment",
        "class_names": names,
        "preprocessing": PREPROCESSING,
        "min_points": 8,
        "parts_of": [[0, 1], [2], [3, 4, 5]],
    }


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return trace(ready(trained("point_bert_classifier")))


def test_pt2_is_the_model_and_has_no_op_of_ours(
    tmp_path: Path, program: ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "trace", lambda _: program)  # it takes seconds
    model = torch.compile(trained("point_bert_classifier"))  # what is exported is the network in it
    assert max(export(model, tmp_path / "a.pt2", preprocessing=PREPROCESSING).values()) < 1e-6
    exported = ProgramModel(tmp_path / "a.pt2")
    for clouds in hundred_clouds(ready(model)).values():
        assert largest_difference(ready(model), exported, clouds) < 1e-6
    assert exported.metadata["preprocessing"] == PREPROCESSING
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "while_loop" in targets
    assert not [target for target in targets if "pc_ewa" in target]


@pytest.mark.slow
def test_a_segmenter_of_point_bert_is_exported_too(tmp_path: Path) -> None:
    model = trained("point_bert_segmenter")
    assert max(export(model, tmp_path / "a.pt2", preprocessing=PREPROCESSING).values()) < 1e-6
    exported = ProgramModel(tmp_path / "a.pt2")
    for clouds in hundred_clouds(ready(model)).values():
        assert largest_difference(ready(model), exported, clouds) < 1e-6


def test_only_what_is_right_is_written(
    tmp_path: Path, program: ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is off, or not a number anywhere, leaves no file."""
    model = trained("point_bert_classifier")

    class Wrong(nn.Module):
        def __init__(self, *_: Any, add: float = 1e-3) -> None:
            super().__init__()
            self.add = add

        def forward(self, points: torch.Tensor) -> torch.Tensor:
            scores = ready(model)(points)
            scores[0, 0] += self.add
            return scores

    monkeypatch.setattr(writing, "trace", lambda _: program)
    for add in (1e-3, math.nan, math.inf):
        monkeypatch.setattr(writing, "ProgramModel", lambda *_, add=add: Wrong(add=add))
        with pytest.raises(CheckpointError, match=r"differs from PyTorch"):
            export(model, tmp_path / "a.pt2")
    monkeypatch.setattr(writing, "ProgramModel", lambda *_: Wrong(add=1e-6))
    assert list(tmp_path.iterdir()) == []
    export(model, tmp_path / "a.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (lambda: pc_ewa.upcycle(small("point_mae_classifier"), num_experts=2), CheckpointError, "pc-ewa merge"),
        (
            lambda: pc_ewa.upcycle(small("point_mae_classifier"), num_experts=2, gate=Gate()),
            CheckpointError,
            "gated",
        ),
        (lambda: small("point_mae"), ConfigError, "pretrain"),
        (lambda: nn.Linear(3, 3), ConfigError, "Linear"),
    ],
)
def test_what_cannot_leave_is_refused(model: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    for name in ("a.onnx", "a.pt2"):
        with pytest.raises(error, match=words):
            export(model(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "onnx", "a", "a.onnx.gz", "a.safetensors", "a.ONNX2"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.onnx or \.pt2"):
        export(small("point_mae_classifier"), tmp_path / name)


def test_a_place_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for path in (tmp_path / "none" / "a.onnx", tmp_path / "folder.onnx", tmp_path / "none" / "a.pt2"):
        with pytest.raises(ConfigError, match="folder"):
            export(small("point_mae_classifier"), path)
    with pytest.raises(ConfigError, match=r"does not end in \.onnx"):
        export_onnx(small("point_mae_classifier"), tmp_path / "a.pt2")


def test_a_step_that_torch_does_not_manage_is_one_line_with_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nway")

    monkeypatch.setattr(torch.export, "export", broken)
    with pytest.raises(CheckpointError, match=rf"torch {re.escape(torch.__version__)}.*RuntimeError: no way"):
        export(small("point_mae_classifier"), tmp_path / "a.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line_with_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=package):
        export(small("point_mae_classifier"), tmp_path / "a.onnx")


def test_names_are_one_for_each_class(tmp_path: Path) -> None:
    for model, count in ((small("point_mae_classifier"), 5), (small("point_bert_segmenter"), 3)):
        with pytest.raises(ConfigError, match=f"7 class_names for a model of {count}"):
            export(model, tmp_path / "a.onnx", class_names=[*"abcdefg"])


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(json.dumps({"no": "model"}).encode())
    for runtime in (OnnxModel, ProgramModel):
        for path in (tmp_path / "a", tmp_path / "absent"):
            with pytest.raises(CheckpointError, match=str(path)):
                runtime(path)
