"""`pc-ewa export`: from a run to a file that needs no pc-ewa."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pc_ewa.benchmark import contest, latency
from pc_ewa.benchmark.ways import cannot_run
from pc_ewa.data import load_dataset
from pc_ewa.eval import EvalSettings
from pc_ewa.export import OnnxModel, quantize
from pc_ewa.export.check import KINDS, largest_difference
from pc_ewa.export.source import load
from pc_ewa.train.restore import restore

pytest.importorskip("onnxruntime")  # optional: it has no wheels for Python 3.10
Tool = Callable[..., Any]
REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def exported(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy run as ONNX: the export itself takes seconds."""
    from pc_ewa.cli.export import main

    path = tmp_path_factory.mktemp("exported") / "toy.onnx"
    assert main([str(trained.folder), "-o", str(path), "--split", "test"]) == 0
    return path


def test_a_run_is_its_merged_model(exported: Path, trained: Any) -> None:
    restored = restore(trained.folder / "checkpoints" / "merged_last.pt")
    restored.place()
    random = torch.Generator().manual_seed(1)
    clouds = [draw(5, n, random) for draw in KINDS.values() for n in (8, 48, 64, 100, 300)]
    assert largest_difference(restored.model, OnnxModel(exported), clouds) < 1e-5
    about = OnnxModel(exported).metadata
    assert about["class_names"] == ["sphere", "cube", "torus"]
    assert about["preprocessing"] == {
        **{"num_points": 48, "stored_points": 64, "sampling": "farthest", "normalize": True, "up_axis": "y"},
    }


def test_the_file_is_measured_on_the_test_set(
    exported: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool
) -> None:
    def copied(model: object, path: Path, **_: object) -> dict[str, float]:
        shutil.copy(exported, path)
        return {"onnxruntime": 1e-7}

    monkeypatch.setattr("pc_ewa.export.export_onnx", copied)
    right = trained.summary["test_correct_merged"]
    code, out, err = tool("export", trained.folder, "-o", tmp_path / "a.onnx", "--int8")
    assert (code, err) == (0, "")  # the quantiser, too, has warnings for its developers
    assert f"test: accuracy {right / 12:.2%} ({right}/12) in float32" in out
    small = OnnxModel(tmp_path / "a.onnx").metadata
    assert small["metrics"]["float32"]["correct"] == right
    assert small["metrics"]["int8"].keys() == small["metrics"]["float32"].keys()
    assert small["int8"] is True
    assert small["class_names"] == ["sphere", "cube", "torus"]
    assert "accuracy" not in tool("export", trained.folder, "-o", tmp_path / "b.onnx", "--int8", "--split", "none").out


def test_8_bits_give_each_cloud_its_answer_whatever_else_is_in_the_batch(exported: Path, tmp_path: Path) -> None:
    quantize(exported, tmp_path / "a.onnx")
    small, generator = OnnxModel(tmp_path / "a.onnx"), torch.Generator().manual_seed(1)
    clouds = torch.cat([KINDS["random"](3, 48, generator), 100 * KINDS["random"](1, 48, generator)])
    alone = torch.cat([small(cloud[None]) for cloud in clouds])
    assert torch.equal(small(clouds), alone)
    assert small(clouds[:0]).shape == (0, 3)


def test_8_bits_change_the_scores_a_little(exported: Path, tmp_path: Path) -> None:
    assert quantize(exported, tmp_path / "a.onnx") is None
    clouds = KINDS["random"](8, 48, torch.Generator().manual_seed(1))
    exact, small = OnnxModel(exported)(clouds), OnnxModel(tmp_path / "a.onnx")(clouds)
    assert 0 < float((exact - small).abs().max()) < 0.1


def test_the_example_needs_no_pc_ewa_and_predicts_as_evaluation_does(
    exported: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = REPOSITORY / "examples" / "onnx_predict.py"
    nodes = ast.walk(ast.parse(script.read_text()))
    imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imports == {"json", "os", "sys", "numpy", "onnxruntime"}
    clouds = load_dataset("hdf5", "test", path=trained.experiment.data.arguments["path"])
    stored, _ = clouds.batch([3])
    model = restore(trained.folder / "checkpoints" / "merged_last.pt").model.eval()
    with torch.no_grad():
        truth = model(EvalSettings(num_points=48).present(stored)[0]).softmax(1)[0]
    moved = 25 * stored[0].numpy().astype(np.float64) + 7
    np.save(tmp_path / "a.npy", moved)
    np.savetxt(tmp_path / "a.xyz", np.hstack([moved, moved]))
    for name in ("a.npy", "a.xyz"):
        monkeypatch.setattr(sys, "argv", ["onnx_predict.py", str(exported), str(tmp_path / name)])
        runpy.run_path(str(script), run_name="__main__")
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        order = truth.argsort(descending=True).tolist()
        assert [name for name, _ in rows] == [clouds.class_names[i] for i in order]
        assert [float(share[:-1]) for _, share in rows] == pytest.approx(
            [100 * float(truth[i]) for i in order], abs=0.06
        )


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.ply", "?", "Other files are not read"),
        ("a.txt", "1;2;3\n", "not lines of x y z"),
        ("a.xyz", "1 2 3\n", "fewer than"),
    ],
)
def test_the_example_refuses_what_is_no_cloud(
    name: str, text: str, reason: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["onnx_predict.py", str(exported), str(tmp_path / name)])
    with pytest.raises(SystemExit, match=reason):
        runpy.run_path(str(REPOSITORY / "examples" / "onnx_predict.py"), run_name="__main__")


@pytest.mark.skipif(shutil.which("node") is None, reason="the optional package nodejs is not installed")
def test_the_page_presents_a_ply_as_evaluation_does(exported: Path, trained: Any, tmp_path: Path) -> None:
    clouds = load_dataset("hdf5", "test", path=trained.experiment.data.arguments["path"])
    stored, _ = clouds.batch([3])
    expected = EvalSettings(num_points=48).present(stored)[0][0]
    kinds = ("ascii", "binary_little_endian", "binary_big_endian")
    for kind in kinds:
        write_ply(tmp_path / f"{kind}.ply", kind, 25 * stored[0].numpy().astype(np.float64) + 7)
    script = f"""
import {{ readFileSync }} from "node:fs";
import {{ present, ranked, readMetadata, readPly }} from "{REPOSITORY}/examples/web/classify.js";
const content = (path) => new Uint8Array(readFileSync(path)).buffer;
const about = readMetadata(content("{exported}"));
const clouds = {list(kinds)}.map((kind) => readPly(content(`{tmp_path}/${{kind}}.ply`)));
const points = clouds.map((cloud) => Array.from(present(cloud, about.preprocessing)));
const drawn = present(clouds[0], {{ num_points: 99, stored_points: 80, normalize: false }});
console.log(JSON.stringify([about, points, drawn.length, ranked([1, 3, 2], about.class_names)]));
"""
    (tmp_path / "a.mjs").write_text(script)
    done = subprocess.run(["node", tmp_path / "a.mjs"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about, points, drawn, ranked = json.loads(done.stdout)
    assert about == OnnxModel(exported).metadata
    for cloud in points:
        assert cloud == pytest.approx(expected.flatten().tolist(), abs=1e-6)
    assert drawn == 3 * 80
    assert [name for name, _ in ranked] == ["cube", "torus", "sphere"]
    assert sum(share for _, share in ranked) == pytest.approx(1)


def write_ply(path: Path, kind: str, points: np.ndarray) -> None:
    """Points in double precision, after a byte of colour."""
    order = ">" if "big" in kind else "<"
    rows = np.zeros(len(points), dtype=[("red", "u1"), *((axis, f"{order}f8") for axis in "xyz")])
    for axis, column in zip("xyz", points.T, strict=True):
        rows[axis] = column
    properties = "".join(f"property double {axis}\n" for axis in "xyz")
    header = f"ply\nformat {kind} 1.0\nelement vertex {len(points)}\nproperty uchar red\n{properties}end_header\n"
    text = "\n".join(" ".join(map(repr, row)) for row in rows.tolist())
    path.write_bytes(header.encode() + (text.encode() if kind == "ascii" else rows.tobytes()))


def test_latency_is_timed_beside_the_accuracy_that_is_kept(
    exported: Path, trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not compiled: that takes half a minute."""
    monkeypatch.setattr(contest, "BURST", 0)
    ways = [way for way in latency.WAYS if "compiled" not in way]
    plan = latency.Plan(2, threads=(1,), batches=(1, 3), ways=ways, exported=exported, pause=0, samples=100)
    monkeypatch.setattr(latency, "cannot_run", lambda: cannot_run() - {"PyTorch, eager, bf16"})  # slow will do
    found = latency.measure(load(trained.folder), plan)
    right = trained.summary["test_correct_merged"] / 12
    rows = {row[0]: row for row in found.table().rows}
    assert {"PyTorch, eager", "PyTorch, eager, bf16", "onnxruntime", "onnxruntime, int8"} <= rows.keys()
    for way, exact in (("onnxruntime", True), ("onnxruntime, int8", False), ("PyTorch, eager, bf16", False)):
        assert all(scores[way].verdict.exact == exact for scores in found.scores.values()), way
        assert all(len(scores[way].seconds) == 2 for scores in found.scores.values())
    assert rows["onnxruntime"][-1] == rows["PyTorch, eager"][-1] == f"{right:.2%}"
    assert [target.bound for target in found.targets()] == [1.4, 2.3, 0.2]
    assert "fastest exact way, times as fast as eager: at least 1.4x" in capsys.readouterr().out
    few = latency.measure(load(trained.folder), replace(plan, samples=5, batches=(1,), ways=ways[:1]))
    assert few.model.endswith("5 test samples")
    text = latency.page(found, "the command", plan)
    assert "| onnxruntime, int8 " in text
    assert "the command" in text


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.pt", (), "does not end in .onnx or .pt2"),
        ("none/a.onnx", (), "is not a folder"),
        ("folder.onnx", (), "is a folder"),
        ("there.onnx", (), "--overwrite"),
        ("a.pt2", ("--int8",), "choose a name that ends in .onnx"),
        ("a.onnx", ("--int8", "data.path=none.h5"), "none.h5 does not exist"),
        ("a.onnx", ("--split", "test", "data.path=none.h5"), "none.h5 does not exist"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    name: str, options: tuple[str, ...], words: str, trained: Any, tmp_path: Path, tool: Tool
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "there.onnx").write_text("mine")
    code, out, err = tool("export", trained.folder, "-o", tmp_path / name, *options)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{re.escape(words)}.*\n", err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_what_cannot_leave_names_its_file_and_the_way_out(trained: Any, tmp_path: Path, tool: Tool) -> None:
    last = trained.folder / "checkpoints" / "last.pt"
    code, _, err = tool("export", last, "-o", tmp_path / "a.onnx")
    assert code == 2
    assert str(last) in err
    assert "pc-ewa merge" in err
    code, _, err = tool("export", tmp_path, "-o", tmp_path / "a.onnx")
    assert (code, str(tmp_path) in err) == (2, True)
    code, _, err = tool("export", tmp_path / "absent.pt", "-o", tmp_path / "a.onnx")
    assert (code, "absent.pt" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []
