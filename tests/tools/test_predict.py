"""`pc-ewa predict`: a table, CSV, JSON and coloured files; bad files are named, and the exit code tells."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shape_files import CLOUDS, MESHES, POINTS, npy

import pc_ewa
from pc_ewa.data import shapes
from pc_ewa.data.formats.readers import read_shape
from pc_ewa.inference import as_inputs
from pc_ewa.inference.picture import predicted_scene
from pc_ewa.models.base import Preprocessing

Tool = Callable[..., Any]
SIZES: dict[str, Any] = {"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 4, "group_size": 4, "encoder_width": 8}


@pytest.fixture(autouse=True)
def five_points_are_a_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "FEWEST_POINTS", len(POINTS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Any = pc_ewa.create_model("point_mae_classifier", num_classes=3, **SIZES)
    made.class_names, made.preprocessing = ("sphere", "cube", "torus"), Preprocessing(16, 32, up_axis="z")
    return made.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


def test_classes_of_files_without_names_are_told(tool: Tool, tmp_path: Path) -> None:
    made = pc_ewa.create_model("point_mae_classifier", num_classes=3, **SIZES)
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    np.save(tmp_path / "a.npy", POINTS)
    sizes = ", ".join(f"{key}: {value}" for key, value in SIZES.items())
    data = "{name: hdf5, path: elsewhere.h5, num_points: 16}"
    (tmp_path / "config.yaml").write_text(f"data: {data}\nmodel: {{name: point_mae_classifier, {sizes}}}\n")
    (tmp_path / "names.txt").write_text("sphere\r\n\nlämp\nold oak\n", encoding="utf-8-sig")
    given = [tmp_path / "weights.pth", tmp_path / "a.npy", "--config", tmp_path / "config.yaml"]
    assert "elsewhere.h5" in tool("predict", *given).err
    result = tool("predict", *given, "--class-names", tmp_path / "names.txt")
    assert (result.code, result.err) == (0, "")
    assert all(name in result.out for name in ("sphere", "lämp", "old oak"))
    for name, content in (
        ("absent.txt", None),
        ("empty.txt", b"\n"),
        ("binary.txt", b"\xff\x00"),
        ("two.txt", b"a\nb"),
        ("twice.txt", b"a\nb\na"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        code, out, err = tool("predict", *given, "--class-names", tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert name in err or "weights.pth" in err


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for name, content in (CLOUDS | MESHES).items():
        (folder / Path(name).stem).mkdir(parents=True, exist_ok=True)
        (folder / Path(name).stem / name).write_bytes(content)
    return folder


def test_files_and_folders_make_a_table_csv_and_json(tool: Tool, model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = tool("predict", model, scans, "--csv", f"{out}.csv", "--json", f"{out}.json", "--batch-size", 7)
    assert (result.code, result.err) == (0, "")
    names = [str(path) for path in sorted(scans.rglob("*.*"))]
    records = json.loads(out.with_suffix(".json").read_text())
    assert sorted(record["file"] for record in records) == names
    assert len(result.out.splitlines()) == len(names)
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    loaded: Any = pc_ewa.load_model(model, device="cpu")
    for record, row, line in zip(records, rows, result.out.splitlines(), strict=True):
        expected = loaded.predict(record["file"])
        assert record["class"] == row["class"] == expected.label
        assert record["probabilities"] == {
            name: pytest.approx(value, abs=1e-6)
            for name, value in zip(loaded.class_names, expected.probabilities.tolist(), strict=True)
        }
        assert float(row["probabilities.cube"]) == pytest.approx(record["probabilities"]["cube"])
        assert line.startswith(record["file"]) or line.startswith("...")
        assert f"{expected.label} {expected.probability:.1%}" in line


def test_top_and_up(tool: Tool, model: Path, tmp_path: Path) -> None:
    (tmp_path / "standing.npy").write_bytes(npy(POINTS))
    (tmp_path / "lying.npy").write_bytes(npy(POINTS[:, [0, 2, 1]] * np.float32([1, 1, -1])))
    first = tool("predict", model, tmp_path / "standing.npy", "--top", 1)
    second = tool("predict", model, tmp_path / "lying.npy", "--top", 1, "--up", "y")
    assert first.out.split()[1:] == second.out.split()[1:]
    assert len(first.out.split()) == 3


def test_bad_files_are_named_and_the_rest_is_done(tool: Tool, model: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "bad.ply").write_bytes(b"ply\nformat")
    (scans / "worse.obj").write_bytes(b"v 1 2\n")
    result = tool("predict", model, scans, "--json", tmp_path / "out.json")
    good = len(CLOUDS | MESHES)
    assert result.code == 2
    assert len(result.out.splitlines()) == len(json.loads((tmp_path / "out.json").read_text())) == good
    first, second, last = result.err.splitlines()
    assert "bad.ply" in first
    assert "worse.obj" in second
    assert last.startswith("error: 2 of ")
    strict = tool("predict", model, scans, "--strict", "--json", tmp_path / "strict.json")
    assert (strict.code, strict.out) == (2, "")
    assert strict.err.startswith("error: ")
    assert "bad.ply" in strict.err
    assert not (tmp_path / "strict.json").exists()


def test_a_segmenter_writes_coloured_parts(tool: Tool, scans: Path, tmp_path: Path) -> None:
    made: Any = pc_ewa.create_model("point_mae_segmenter", num_parts=6, num_categories=2, **SIZES)
    made.class_names, made.preprocessing = ("chair", "lamp"), Preprocessing(16, 16)
    model = made.save_pretrained(tmp_path / "model")
    result = tool("predict", model, scans, "--category", "lamp", "-o", tmp_path / "parts", "--csv", tmp_path / "c.csv")
    assert (result.code, result.err) == (0, "")
    written = sorted((tmp_path / "parts").rglob("*.ply"))
    assert len(written) == len(CLOUDS | MESHES)
    path = tmp_path / "parts" / "plain" / "plain.npy.ply"
    assert np.array_equal(read_shape(path).vertices.astype(np.float32), POINTS)
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert b"property uchar red" in header
    rows = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3), ("part", "<i4")])
    again = tool(
        "predict", model, scans / "plain", "--category", "lamp", "-o", tmp_path / "p", "--picture", tmp_path / "p.svg"
    )
    assert (again.code, (tmp_path / "p.svg").is_file()) == (0, True)
    labels = pc_ewa.load_model(model, device="cpu").predict(scans / "plain" / "plain.npy", category="lamp").parts
    assert rows["part"].tolist() == labels.tolist()
    for part in set(rows["part"].tolist()):
        assert len({tuple(colour) for colour in rows["rgb"][rows["part"] == part].tolist()}) == 1
    assert tool("predict", model, scans).code == 2
    assert "chair, lamp" in tool("predict", model, scans).err


def test_a_picture_shows_each_cloud_with_its_answer(tool: Tool, model: Path, scans: Path, tmp_path: Path) -> None:
    result = tool("predict", model, scans, "--picture", tmp_path / "sheet.svg")
    assert (result.code, len(result.out.splitlines())) == (0, len(CLOUDS | MESHES))
    drawn = (tmp_path / "sheet.svg").read_text()
    assert drawn.startswith("<?xml")
    clouds, _ = as_inputs(scans)
    loaded: Any = pc_ewa.load_model(model, device="cpu")
    found = loaded.predict(scans)
    scene = predicted_scene(found, clouds, loaded.preprocessing, None)
    assert len(scene.panels) == min(len(found), 24)
    for panel, prediction in zip(scene.panels, found, strict=False):
        assert panel.title == f"{prediction.label} {prediction.probability:.0%}\n{Path(prediction.name).name}"
        assert panel.points.shape == (16, 3)
    assert "sheet.gif" in tool("predict", model, scans, "--picture", "sheet.gif").err


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--top", 0], "--top 0"),
        (["--batch-size", 0], "--batch-size 0"),
        (["--csv", "/nowhere/at/all.csv"], "/nowhere/at/all.csv"),
        (["--json", "."], "cannot be written"),
        (["--category", "cube"], "category"),
        (["-o", "parts"], "-o parts"),
        (["--up", "w"], "--up"),
        (["--config", "quickstart"], "config.json"),
        (["nowhere.ply"], "nowhere.ply"),
    ],
)
def test_mistakes_are_one_line(arguments: list[Any], fact: str, tool: Tool, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cloud.npy").write_bytes(npy(POINTS))
    result = tool("predict", model, tmp_path / "cloud.npy", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert fact in result.err


def test_nothing_that_is_read_is_written_over(tool: Tool, model: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.txt"
    scan.write_bytes(CLOUDS["plain.xyz"])
    for arguments in (
        [scan, "--csv", scan],
        [scan, "--csv", "a.out", "--json", "./a.out"],
        [scan, "--csv", "a.svg", "--picture", "./a.svg"],
        [scan, "--json", model / "config.json"],
        [tmp_path, "--category", "cube", "-o", tmp_path / "parts"],
        [tmp_path, "--csv", tmp_path / "out.csv"],
    ):
        result = tool("predict", model, *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert scan.read_bytes() == CLOUDS["plain.xyz"]
    for name in ("a.npy", "a.npy.ply"):
        (tmp_path / name).write_bytes(npy(POINTS) if name == "a.npy" else MESHES["ascii.ply"])
    both = [tmp_path / "a.npy", tmp_path / "a.npy.ply", "--category", "cube", "-o", tmp_path]
    assert "a.npy.ply is one of the files to read" in tool("predict", model, *both).err
    (tmp_path / "model.onnx").write_text("x")
    assert "exported" in tool("predict", tmp_path / "model.onnx", scan).err
    weights = tmp_path / "weights.pt"
    weights.write_text("mine")
    for command in (
        ["predict", weights, scan, "--csv"],
        ["evaluate", weights, "--json"],
        ["evaluate", weights, "--errors"],
    ):
        assert "weights.pt is one of the files to read" in tool(*command, weights).err
    assert "--json and --errors" in tool("evaluate", weights, "--errors", "e.csv", "--json", "e.csv").err
    assert weights.read_text() == "mine"


def test_an_empty_folder_and_an_odd_name(tool: Tool, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no clouds" in tool("predict", model, tmp_path / "empty").err
    odd = os.fsencode(tmp_path) + b"/caf\xe9.npy"
    with open(odd, "wb") as file:
        file.write(npy(POINTS))
    result = tool("predict", model, os.fsdecode(odd), "--csv", tmp_path / "odd.csv")
    assert (result.code, result.err) == (0, "")
