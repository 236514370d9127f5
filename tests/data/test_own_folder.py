"""The files in a folder of one's own shapes: their classes and splits, and what lies there to no use."""

import os
from pathlib import Path

import pytest
from shape_folders import put, splits

from pc_ewa.data.own_files import load, source
from pc_ewa.errors import DataError
from pc_ewa.package import MissingPackageError


def test_folders_of_splits_above_the_classes(tmp_path: Path) -> None:
    put(tmp_path, "Train/chair/1.xyz", "Train/train/1.xyz", "validation/chair/1.xyz", "test/chair/1.xyz", "docs/a.md")
    opened = source(tmp_path)
    assert opened.split_names == ("train", "val", "test")
    assert opened.class_names == ("chair", "train")
    assert splits(opened) == {
        "Train/chair/1.xyz": "train",
        "Train/train/1.xyz": "train",
        "test/chair/1.xyz": "test",
        "validation/chair/1.xyz": "val",
    }
    assert len(load("val", Path(), path=str(tmp_path))) == 1
    (tmp_path / "test/lamp").mkdir()
    assert source(tmp_path).class_names == ("chair", "train")
    assert any("lamp" in note for note in source(tmp_path).notes)


def test_folders_of_splits_inside_the_classes(tmp_path: Path) -> None:
    put(tmp_path, "chair/train/1.xyz", "chair/test/a/1.xyz", "train/train/1.xyz", "train/valid/1.xyz")
    assert list(splits(source(tmp_path)).values()) == ["test", "train", "train", "val"]
    put(tmp_path, "chair/2.xyz")
    with pytest.raises(DataError, match=r"chair/2.xyz is not in a folder of a split"):
        source(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, "car/1.xyz", "train/1.xyz", "car/2.xyz")
    assert source(tmp_path).class_names == ("car", "train")
    put(tmp_path, "train/chair/1.xyz")
    with pytest.raises(DataError, match=r"train/chair looks like a class in a folder of a split, car/\d.xyz does not"):
        source(tmp_path)


def test_lists_tell_the_split_and_leave_out_the_rest(folder: Path) -> None:
    put(folder, "test.txt", text="chair\\0.off\n# a comment\n\n./table/3.xyz\r\n")
    put(folder, "train.txt", text="\ufefftable/1.xyz\nchair/1.off\nlamp/deep/er/1.TXT")
    put(folder, "valid.txt", text="table/2.xyz")
    assert splits(source(folder)) == {
        "table/1.xyz": "train",
        "chair/1.off": "train",
        "lamp/deep/er/1.TXT": "train",
        "table/2.xyz": "val",
        "chair/0.off": "test",
        "table/3.xyz": "test",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("table/1.xyz\ntable/99.xyz\n", "line 2 lists 'table/99.xyz', but there is no such shape"),
        ("../mine/table/1.xyz\n", "no such shape"),
        ("table/notes.md\n", "no such shape"),
        ("table/1.xyz\ntable/1.xyz\n", "line 2 puts table/1.xyz into test, but it is in test"),
        ("# nothing\n", "lists no shapes"),
        ("\udcff\n", "in UTF-8"),
    ],
)
def test_lists_with_defects(folder: Path, text: str, reason: str) -> None:
    (folder / "test.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=rf"{folder}/test\.txt.*{reason}"):
        source(folder)


def test_lists_that_contradict_or_are_none(folder: Path) -> None:
    put(folder, "test.txt", "val.txt", text="table/1.xyz\n")
    with pytest.raises(DataError, match=r"puts table/1\.xyz into test, but it is in val"):
        source(folder)
    (folder / "val.txt").unlink()
    os.mkfifo(folder / "val.txt")
    with pytest.raises(DataError, match=r"val\.txt.*it is not a file"):
        source(folder)
    both = put(folder.parent / "both", "train/chair/1.xyz", "test/chair/2.xyz")
    put(both, "test.txt", text="train/chair/1.xyz\n")
    with pytest.raises(DataError, match="into test, but it is in train"):
        source(both)


def test_folders_without_shapes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing is not a folder"):
        source(tmp_path / "missing")
    put(tmp_path / "none", "chair/1.glb", "1.ply", text="?")
    with pytest.raises(DataError, match=r"none has no shapes.*\.ply \.pcd .* \.npy.*\.glb is not read: "):
        source(tmp_path / "none")
    put(tmp_path / "cups", "1.ply", "2.ply")
    with pytest.raises(DataError, match="cups is itself a class, give the folder above"):
        source(tmp_path / "cups")


def test_classes_without_shapes_and_files_in_no_class_are_left_out_with_a_note(folder: Path) -> None:
    before = source(folder)
    put(folder, "bed/1.glb", "loose.STL", "scan.xyz", "test.glb", text="?")
    (folder / "void").mkdir()
    after = source(folder)
    assert (after.class_names, splits(after)) == (before.class_names, splits(before))
    loose, empty = (note for note in after.notes if "left out" in note)
    assert all(name in loose for name in ("loose.STL", "scan.xyz"))
    assert "test.glb" not in loose
    assert all(name in empty for name in ("bed", "void", ".glb is not read"))
    put(folder, "train.txt", "val.txt", text="table/1.xyz\nchair/1.off\nlamp/deep/er/1.TXT")
    (folder / "val.txt").write_text("table/2.xyz")
    assert not any(name in note for note in source(folder).notes for name in ("train.txt", "val.txt"))


def test_a_missing_reader_is_named_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "table/1.laz", text="?")
    monkeypatch.setattr("pc_ewa.data.formats.kinds.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"reading \.laz files needs laspy"):
        source(folder)


def test_links_are_followed_unless_they_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "1.xyz")
    (folder / "bed").symlink_to(tmp_path / "elsewhere")
    (folder / "table/link.xyz").symlink_to(tmp_path / "elsewhere/1.xyz")
    assert {"bed/1.xyz", "table/link.xyz"} < splits(source(folder)).keys()
    for target, reason in ((folder / "table", "in a circle|contains it"), (tmp_path / "nothing", "a link to nothing")):
        link = folder / "table/circle"
        link.symlink_to(target)
        with pytest.raises(DataError, match=rf"table/circle is .*({reason})"):
            source(folder)
        link.unlink()


def test_what_is_no_file_and_names_that_not_every_system_can_have(folder: Path) -> None:
    os.mkfifo(folder / "table/pipe.ply")
    with pytest.raises(DataError, match=r"pipe\.ply is not a file"):
        source(folder)
    (folder / "table/pipe.ply").unlink()
    (folder / "table/folder.ply").mkdir()
    with pytest.raises(DataError, match=r"folder\.ply is not a file"):
        source(folder)
    (folder / "table/folder.ply").rmdir()
    bad = os.fsencode(folder / "table") + b"/\xff.xyz"
    Path(os.fsdecode(bad)).touch()
    with pytest.raises(DataError, match=r"'\\udcff\.xyz', which is not a valid name on every system"):
        source(folder)
    os.unlink(bad)
    put(folder, "table/e\u0301.xyz")
    assert "table/\u00e9.xyz" in splits(source(folder))
    put(folder, "table/\u00e9.xyz")
    with pytest.raises(DataError, match="two spellings"):
        source(folder)


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "table":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot list .*mine/table: Permission denied"):
        source(folder)
