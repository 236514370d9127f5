"""ShapeNet-55 as Point-BERT publishes it: read in place, prepared, and every defect in one line."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import EDITS, Edits, attempt, edited, folder_instead
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_ewa.data import Clouds, MissingSplitError, write_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.published import shapenet55
from pc_ewa.data.source import Source
from pc_ewa.errors import DataError

SYNSETS = sorted(shapenet55.SYNSETS)
FUZZ = settings(
    max_examples=120,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def points_of(i: int) -> np.ndarray:
    return np.random.RandomState(i).uniform(-0.5, 0.5, (8192, 3)).astype(np.float32)


def generate(folder: Path, synsets: list[str] = SYNSETS, tests: int = 3) -> Path:
    """Write one training shape of each synset, against the order of labels, and test shapes of the first ones."""
    data, lists = folder / "shapenet_pc", folder / "ShapeNet-55"
    data.mkdir(parents=True)
    lists.mkdir()
    train = [f"{synset}-{i:032x}.npy" for i, synset in enumerate(synsets)][::-1]
    test = [f"{synset}-{1000 + i:031x}.npy" for i, synset in enumerate(synsets[:tests])]
    for i, name in enumerate(train + test):
        np.save(data / name, points_of(i))
    (lists / "train.txt").write_text("\n".join(train))  # as published: no end of line at the end
    (lists / "test.txt").write_text("\n".join(test) + "\n")
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All synsets; not to be changed."""
    return generate(tmp_path_factory.mktemp("full") / "shapenet55" / "ShapeNet55-34").parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shapes of one synset; to be damaged."""
    return generate(tmp_path / "shapenet55", SYNSETS[:1], tests=1)


def file_of(folder: Path) -> Path:
    return folder / "shapenet_pc" / f"{SYNSETS[0]}-{0:032x}.npy"


def test_labels_are_positions_among_the_55_sorted_synsets() -> None:
    assert len(SYNSETS) == 55
    assert list(shapenet55.SYNSETS) == SYNSETS
    assert (SYNSETS[0], SYNSETS[17], SYNSETS[-1]) == ("02691156", "02992529", "04554684")
    assert len(set(shapenet55.SYNSETS.values())) == 55
    assert shapenet55.SYNSETS["02992529"] == "cellular telephone"


def test_the_card_says_the_same(repository: Path) -> None:
    card = (repository / "datasets" / "shapenet55" / "README.md").read_text()
    for label, synset in enumerate(SYNSETS):
        assert f"| {label} | {synset} | {shapenet55.SYNSETS[synset]} |" in card


def test_in_place_and_prepared_are_the_same(full: Path, tmp_path: Path) -> None:
    root = full.parent
    convert(shapenet55.source(full), tmp_path / "shapenet55" / shapenet55.FILE)
    for split, whole, count in (("train", False, 55), ("test", False, 3), ("train", True, 58), ("test", True, 3)):
        plain = shapenet55.load(split, root, whole=whole)
        prepared = shapenet55.load(split, tmp_path, whole=whole)
        assert len(plain) == len(prepared) == count
        assert plain.shape_names == prepared.shape_names
        assert plain.class_names == prepared.class_names == tuple(shapenet55.SYNSETS.values())
        assert (plain.up_axis, prepared.up_axis, prepared.num_points) == ("y", "y", 8192)
        index = range(count)
        (points, labels), (stored, stored_labels) = plain.batch(index), prepared.batch(index)
        torch.testing.assert_close(points, stored, atol=1 / 32767, rtol=0)
        assert torch.equal(labels, stored_labels)
        assert prepared.rows is not None, "mapped"


def test_points_labels_and_names_are_those_of_the_files(full: Path) -> None:
    clouds = shapenet55.load("train", Path("elsewhere"), path=str(full / "ShapeNet55-34"), whole=True)
    assert clouds.labels.tolist() == [*range(54, -1, -1), 0, 1, 2]
    assert clouds.shape_names is not None
    assert clouds.shape_names[0] == f"04554684-{54:032x}"
    assert clouds.shape_names[55].startswith("02691156-")
    for i in (0, 30, 57):
        np.testing.assert_array_equal(clouds.points[i], points_of(i))


def test_whole_joins_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    path, points = tmp_path / "own.h5", np.random.RandomState(0).normal(size=(3, 4, 3))
    write_hdf5(path, points, [0, 0, 0], ["a"], up_axis="y", split=[0, 1, 0], names=["a", "b", "c"], dtype="float32")
    clouds = shapenet55.load("train", tmp_path, whole=True, path=str(path))
    np.testing.assert_allclose(clouds.batch([0, 1, 2])[0], points[[0, 2, 1]], rtol=1e-6)
    assert clouds.shape_names == ("a", "c", "b")


def test_no_validation_split(folder: Path) -> None:
    with pytest.raises(MissingSplitError, match="choose one of: test, train"):
        shapenet55.load("val", folder.parent)


@pytest.mark.parametrize("place", ["inside", "with the data", "beside"])
def test_lists_may_lie_elsewhere(folder: Path, tmp_path: Path, place: str) -> None:
    lists = folder / "ShapeNet-55"
    if place == "with the data":
        for path in lists.iterdir():
            path.rename(folder / path.name)
    if place == "beside":
        lists.rename(folder.parent / "ShapeNet-55")
    assert len(shapenet55.source(folder).items) == 2


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    file_of(folder).rename(tmp_path / "moved.npy")
    file_of(folder).symlink_to(tmp_path / "moved.npy")
    np.testing.assert_array_equal(shapenet55.load("train", tmp_path).points[0], points_of(0))


def rewrite_list(change: Callable[[str], str], name: str = "train.txt") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "ShapeNet-55" / name
        path.write_text(change(path.read_text().strip()))

    return write


def rewrite_list_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "ShapeNet-55" / "train.txt").write_bytes(content) and None


def remove_lists(folder: Path) -> None:
    for path in (folder / "ShapeNet-55").iterdir():
        path.unlink()


LIST_DEFECTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no lists", remove_lists, r"lists train\.txt and test\.txt.*Point-BERT.*to .*shapenet55/ShapeNet-55"),
    ("one list", lambda f: (f / "ShapeNet-55" / "test.txt").unlink(), "not the lists"),
    ("list is a folder", lambda f: folder_instead(f / "ShapeNet-55/test.txt"), "not the lists"),
    ("missing", rewrite_list(lambda t: f"{t}\n02691156-f.npy"), "1 of 2 shapes that are missing, the first: 0.*f.npy"),
    ("twice", rewrite_list(lambda t: f"{t}\n{t}"), "names 02691156-0*.npy, which is there already"),
    ("in both", rewrite_list(lambda t: t.replace("3e8", "000"), "test.txt"), "test.txt names .* missing"),
    ("another synset", rewrite_list(lambda t: t.replace("02691156", "99999999")), "not a <synset>-<model>.npy"),
    ("path", rewrite_list(lambda t: f"{t}\n02691156-/../../secret.npy"), "not a <synset>-<model>.npy of the 55"),
    ("not UTF-8", rewrite_list_bytes(b"\xff\xfe0\x002\x00"), "train.txt is not text: byte 0 is not UTF-8"),
    ("binary", rewrite_list_bytes(bytes(range(100))), r"has the line '.*', not a <synset>"),
    ("no points folder", lambda f: (f / "shapenet_pc").rename(f / "x"), "no folder shapenet_pc; unpack"),
]


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in LIST_DEFECTS], ids=[d[0] for d in LIST_DEFECTS])
def test_damaged_lists(folder: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    with pytest.raises(DataError, match=message) as caught:
        shapenet55.source(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_shape_in_both_lists(folder: Path) -> None:
    lists = folder / "ShapeNet-55"
    (lists / "test.txt").write_text((lists / "train.txt").read_text())
    with pytest.raises(DataError, match=r"test\.txt names .*already, here or in another split"):
        shapenet55.source(folder)


def saved(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


SOUND = saved(points_of(0))

ARRAY_DEFECTS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "no NPY header"),
    ("truncated", SOUND[:-1], "ends early"),
    ("header only", SOUND[:128], "ends early"),
    ("half a header", SOUND[:60], "no NPY header"),
    ("trailing", SOUND + b"x", "98305 bytes"),
    ("garbage", bytes(range(256)) * 8, "no NPY header"),
    (
        "huge claim",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 3), }\n"),
        "10000000000000",
    ),
    ("huge header", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "no NPY header"),
    ("deep header", header("{'descr': " + "(" * 9000), "no NPY header"),
    (
        "huge number",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 9000 + ", 3), }"),
        "NPY|early|exp",
    ),
    ("version 9", b"\x93NUMPY\x09\x00" + SOUND[8:], "no NPY header"),
    ("integers", saved(np.zeros((8192, 3), np.int32)), r"\(8192, 3\).*int32; expected \(8192, 3\) float32"),
    ("pickle", saved(np.array([[print]], dtype=object), allow_pickle=True), "object"),
    ("bare pickle", b"\x80\x04cos\nsystem\n", "no NPY header"),
    ("archive", b"PK\x03\x04" + b"\0" * 60, "no NPY header"),
    ("no points", saved(np.zeros((0, 3), np.float32)), r"\(0, 3\).*expected \(8192, 3\)"),
    ("one point", saved(np.zeros((1, 3), np.float32)), r"\(1, 3\)"),
    ("normals", saved(np.zeros((8192, 6), np.float32)), r"\(8192, 6\)"),
    ("NaN", saved(np.where(np.arange(8192)[:, None] == 9, np.nan, points_of(0)).astype(np.float32)), "nan among"),
    ("infinity", saved(np.full((8192, 3), np.inf, np.float32)), "inf among the coordinates"),
    ("overflow", saved(np.full((8192, 3), 1e300)), "inf among the coordinates"),
    ("large", b"\0" * (2**20 + 1), "more than 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "message"), [d[1:] for d in ARRAY_DEFECTS], ids=[d[0] for d in ARRAY_DEFECTS])
def test_damaged_arrays(folder: Path, content: bytes, message: str) -> None:
    file_of(folder).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        shapenet55.load("train", folder.parent)
    assert file_of(folder).stem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(shapenet55.load("test", folder.parent)) == 1, "the others can be read"


@pytest.mark.parametrize(
    "array", [points_of(0).astype(">f4"), points_of(0).astype("f8"), np.asfortranarray(points_of(0))]
)
def test_other_orders_of_the_same_numbers(folder: Path, array: np.ndarray) -> None:
    file_of(folder).write_bytes(saved(array))
    np.testing.assert_array_equal(shapenet55.load("train", folder.parent).points[0], points_of(0))


def test_files_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(DataError, match=r"cannot read .*train\.txt: .*Permission denied"):
            shapenet55.source(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(DataError, match=r"cannot list the folder .*shapenet_pc: .*Permission denied"):
            shapenet55.source(folder)
    file_of(folder).unlink()
    file_of(folder).symlink_to("nowhere")
    with pytest.raises(DataError, match="is missing, or not a file"):
        shapenet55.load("train", folder.parent)
    file_of(folder).unlink()
    os.mkfifo(file_of(folder))
    with pytest.raises(DataError, match="is missing, or not a file"):
        shapenet55.load("train", folder.parent)


def test_nothing_there(tmp_path: Path) -> None:
    for whole in (False, True):
        with pytest.raises(DataError, match=r"pc-ewa prepare shapenet55"):
            shapenet55.load("train", tmp_path, whole=whole)
        (tmp_path / "shapenet55").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"holds no shapenet55 in any published format"):
            shapenet55.load("train", tmp_path, whole=whole)


@FUZZ
@given(EDITS, st.sampled_from([128, 10**6]))
def test_corrupted_arrays(folder: Path, changes: Edits, within: int) -> None:
    file_of(folder).write_bytes(edited(SOUND, changes, within))
    result = attempt(lambda: shapenet55.load("train", folder.parent))
    if isinstance(result, Clouds):
        assert result.points.shape == (1, 8192, 3)
        assert result.points.isfinite().all()
    else:
        assert file_of(folder).stem in str(result)


@FUZZ
@given(EDITS, st.sampled_from(["train.txt", "test.txt"]))
def test_corrupted_lists(folder: Path, changes: Edits, name: str) -> None:
    path = folder / "ShapeNet-55" / name
    content = path.read_bytes()
    path.write_bytes(edited(content, changes))
    result = attempt(lambda: shapenet55.source(folder))
    path.write_bytes(content)
    if isinstance(result, Source):
        assert len(result.items) in (1, 2)
    else:
        assert name in str(result)
