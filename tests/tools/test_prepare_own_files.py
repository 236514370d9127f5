"""`pc-ewa prepare files FOLDER`: the user's own shapes, and what it tells of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pc_ewa.data.hdf5 import read_hdf5

Tool = Callable[..., Any]
POINTS = "".join(f"{i} {i % 3} {i % 5}\n" for i in range(20))


def test_a_class_whose_test_shapes_cannot_be_read_is_named(tool: Tool, tmp_path: Path) -> None:
    for i, name in enumerate(["train/cup/1", "train/pen/1", "test/cup/1", "test/pen/1"]):
        path = tmp_path / "mine" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.RandomState(i).uniform(size=(50, 3)))
    path.write_bytes(b"no numpy")
    out = tool("prepare_data", "files", tmp_path / "mine", "-o", tmp_path / "mine.h5", "--points", 40).out
    assert "pen        1     0\n" in out
    assert "note: no test shape of pen is left, as none can be read" in out


def test_own_files(tool: Tool, tmp_path: Path) -> None:
    for i, name in enumerate(["cup/1", "cup/2", "cup/3", "pen/1", "pen/2", "pen/3"]):
        path = tmp_path / "mine" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.RandomState(i).uniform(size=(50, 3)))
    (tmp_path / "mine" / "cup" / "bad.npy").write_bytes(b"no numpy")
    output = tmp_path / "mine.h5"
    command = ("prepare_data", "files", tmp_path / "mine", "-o", output, "--points", 40, "--up", "y")
    code, out, err = tool(*command, "--test-fraction", 0.34)
    assert (code, err) == (0, "")
    assert f"{output}: 6 shapes of 40 points, y up\nclass  train  test\n" in out
    assert "cup        2     1\npen        2     1\nall        4     2\n" in out
    assert "skipped 1 that cannot be used:\n" in out
    assert "bad.npy" in out
    assert out.endswith(f"train on it: pc-ewa train own_data data.path={output} data.num_points=40\n")
    assert len(read_hdf5(output, "train", name="mine")) == 4
    assert tool(*command).err == f"error: {output} is there already; choose another -o, or add --overwrite\n"
    assert tool(*command, "--overwrite").code == 0
    for path in (tmp_path / "mine").rglob("[0-9].npy"):
        path.write_bytes(b"")
    code, _, err = tool(*command, "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "no shape could be read; 7 were left out, the first: " in err


def test_files_of_other_kinds_are_named(tool: Tool, tmp_path: Path) -> None:
    for label in ("cup", "mug"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "mine" / label / f"{i}.xyz").write_text(POINTS)
    (tmp_path / "mine" / "cup" / "cup.GLB").touch()
    (tmp_path / "mine" / "mug" / "notes.md").touch()
    (tmp_path / "mine" / ".git").mkdir()
    (tmp_path / "mine" / ".git" / "config.ini").touch()
    out = tool("prepare_data", "files", tmp_path / "mine", "-o", tmp_path / "mine.h5").out
    assert "ignored files of other kinds: .glb (1), .md (1); read are .ply .pcd" in out
    assert ".glb is not read: pip install trimesh" in out


def test_notes_and_names_are_printed_clean(tool: Tool, tmp_path: Path) -> None:
    bidi = "cup\u202e"
    for name in ("Mug/1", "Mug/2", "mug/1", "mug/2", "pen/1", f"{bidi}/1", f"{bidi}/2", "cup/1.x\u202e"):
        path = tmp_path / "mine" / (name if "." in name else f"{name}.xyz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(POINTS)
    (tmp_path / "mine/cup/1.xyz").write_text("0 0 nan\n")
    (tmp_path / "mine/cup/2.xyz").write_text(POINTS)
    (tmp_path / "mine" / bidi / "bad\u202e.xyz").write_text("0\n")
    code, out, err = tool("prepare_data", "files", tmp_path / "mine", "-o", tmp_path / "mine.h5")
    assert (code, err) == (0, "")
    assert "\nnote: classes that differ only in case: Mug, mug" in out
    assert "\nnote: no test shape of pen" in out
    assert "\ncup?    " in out
    assert all(line.isprintable() for line in out.splitlines())


def test_near_copies_across_splits_are_told(tool: Tool, tmp_path: Path) -> None:
    for i in range(5):
        points = np.random.RandomState(i).uniform(-1, 1, (30, 3))
        for name in (f"cup/{i}.xyz", f"cup/{i}_rot90.npy"):
            path = tmp_path / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, points, "%.6f") if path.suffix == ".xyz" else np.save(path, points[:, [1, 0, 2]])
    command = ("prepare_data", "files", tmp_path / "mine", "-o", tmp_path / "mine.h5")
    code, out, err = tool(*command)
    assert (code, err) == (0, "")
    assert "note: near-copies: " in out
    assert "--group-by REGEX" in out
    out = tool(*command, "--overwrite", "--group-by", r"\d+").out
    assert "near-copies" not in out


def test_groups_of_own_files(tool: Tool, tmp_path: Path) -> None:
    for name in (f"{label}/{i}_{view}" for label in ("cup", "pen") for i in range(4) for view in "ab"):
        path = tmp_path / "mine" / f"{name}.xyz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, np.random.RandomState(list(name.encode())).uniform(size=(20, 3)))
    command = ("prepare_data", "files", tmp_path / "mine", "-o", tmp_path / "mine.h5", "--group-by")
    assert tool(*command, r"\w+/\d").code == 0
    parts = [read_hdf5(tmp_path / "mine.h5", split, name="mine").shape_names or () for split in ("train", "test")]
    train, test = ({name[:5] for name in names} for names in parts)
    assert (len(train), len(test), train & test) == (6, 2, set())
    code, _, err = tool(*command, "(", "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "group_by is '(', not a regular expression" in err
    assert tool("prepare_data", "modelnet40", "--group-by", "x", "--root", tmp_path).code == 2


def classes(folder: Path, *names: str) -> Path:
    """Write clouds of 40 points."""
    for name in names:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.RandomState(list(name.encode())).uniform(size=(40, 3)))
    return folder


def test_what_is_of_no_use_is_told_and_left_out(tool: Tool, tmp_path: Path) -> None:
    folder = classes(tmp_path / "parts", *(f"{label}/{i}" for label in ("bolt", "nut") for i in range(3)), "loose")
    for path in ("nut/notes.txt", "washer/1.npy", "washer/2.npy"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("1 2 3\n4 5 6\n")
    (folder / "empty").mkdir()
    code, out, err = tool("prepare_data", "files", folder, "-o", tmp_path / "a.h5", "--points", "1024")
    assert (code, err) == (0, "")
    assert "skipped 3 that cannot be used" in out
    assert "nut/notes.txt has 2 distinct points" in out
    left_out = [line for line in out.splitlines() if line.startswith("note: left out")]
    assert "as it lies in no class folder" in left_out[0]
    assert [next(name for name in ("loose.npy", "empty", "washer") if name in line) for line in left_out] == [
        "loose.npy",
        "empty",
        "washer",
    ]
    assert read_hdf5(tmp_path / "a.h5", "train", name="a").class_names == ("bolt", "nut")
    assert out.endswith(f"train on it: pc-ewa train own_data data.path={tmp_path / 'a.h5'}\n")


def test_copies_in_two_classes_are_named(tool: Tool, tmp_path: Path) -> None:
    folder = classes(tmp_path / "parts", *(f"{label}/{i}" for label in ("bolt", "nut") for i in range(2)))
    np.save(folder / "nut/copy.npy", np.load(folder / "bolt/1.npy") * 3)
    out = tool("prepare_data", "files", folder, "-o", tmp_path / "a.h5", "--test-fraction", "0").out
    assert "note: contradictory labels: 1 shape is" in out
    assert "bolt/1.npy (bolt, train) and nut/copy.npy (nut, train)" in out


def test_training_is_not_advised_on_what_cannot_be_trained_on(tool: Tool, tmp_path: Path) -> None:
    folder = classes(tmp_path / "all", *(f"parts/{label}/{i}" for label in ("bolt", "nut") for i in range(2)))
    command = ("prepare_data", "files", "-o", tmp_path / "a.h5", "--overwrite")
    for arguments, lacks in (
        ([folder], ["a second class"]),
        ([folder / "parts", "--test-fraction", "0"], ["a test shape"]),
        ([folder, "--test-fraction", "0"], ["a second class", "a test shape"]),
    ):
        code, out, _ = tool(*command, *arguments)
        assert (code, "train on it" in out) == (0, False)
        last = out.splitlines()[-1]
        assert [what for what in ("a second class", "a test shape") if what in last] == lacks
        assert ("did you mean" in out) == (arguments[0] == folder)
        assert f"{folder / 'parts'}, which has bolt, nut" in out or arguments[0] != folder
    out = tool(*command, folder / "parts", "--points", "10").out
    assert "train on it" not in out
    assert "note: own_data needs 32 points" in out
    assert "--points 32" in out


@pytest.mark.parametrize("name", ["mine", "mine.onnx", "mine.h5.zip"])
def test_the_output_has_the_name_of_an_hdf5_file(tool: Tool, tmp_path: Path, name: str) -> None:
    code, out, err = tool("prepare_data", "files", tmp_path / "missing", "-o", tmp_path / name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert ".h5 or .hdf5" in err


def test_a_folder_without_the_word_files(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my parts").mkdir()
    for words in (["my parts/"], ["file", "my parts/"], ["own", "my parts/"]):
        code, _, err = tool("prepare_data", *words, "-o", "a.h5")
        assert (code, err.count("\n")) == (2, 1)
        assert err.endswith("did you mean: pc-ewa prepare files 'my parts/' -o a.h5\n")
    assert "did you mean 'files'?" in tool("prepare_data", "file", "nowhere", "-o", "a.h5").err
    err = tool("prepare_data", "nowhere", "-o", "a.h5").err
    assert "modelnet40" in err
    assert " files," in err
