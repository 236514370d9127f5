"""ShapeNetPart as published: read in place, prepared, and every defect in one line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import EDITS, Edits, attempt, edited, folder_instead
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_ewa.config import Data
from pc_ewa.data import Clouds, MissingSplitError
from pc_ewa.data.convert import convert
from pc_ewa.data.published import shapenetpart
from pc_ewa.data.published.shapenetpart import CATEGORIES, PARTS
from pc_ewa.data.source import Source
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.train.splits import load_splits

PUBLISHED = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
FUZZ = settings(
    max_examples=120,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def table_of(category: str, number: int, seed: int) -> np.ndarray:
    """Coordinates, normals, and all parts of the category in turn."""
    random = np.random.RandomState(seed)
    parts = np.resize(PARTS[category], number)
    return np.column_stack([random.uniform(-0.5, 0.5, (number, 3)).round(5), random.normal(size=(number, 3)), parts])


def generate(folder: Path, categories: list[str], numbers: tuple[int, int, int]) -> Path:
    """Write a shape of each category and split, of so many points."""
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "synsetoffset2category.txt").write_text("".join(f"{c}\t{s}\n" for c, s in CATEGORIES.items()))
    for i, (split, number) in enumerate(zip(("train", "val", "test"), numbers, strict=True)):
        names = []
        for j, category in enumerate(categories):
            path = folder / CATEGORIES[category] / f"{16 * i + j:032x}.txt"
            path.parent.mkdir(exist_ok=True)
            form = ("%.5f",) * 3 + ("%.4f",) * 3 + ("%.6f",)
            np.savetxt(path, table_of(category, number, i + j), form)
            names.append(f"shape_data/{CATEGORIES[category]}/{path.stem}")
        text = json.dumps(names[::-1])  # against the order of labels
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All categories; more points than are asked for in train, fewer in test; not to be changed."""
    root = tmp_path_factory.mktemp("full")
    generate(root / "shapenetpart" / PUBLISHED, list(CATEGORIES), (90, 64, 50))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three bags, one of each split; to be damaged."""
    return generate(tmp_path / "shapenetpart", ["Bag"], (12, 12, 12))


def file_of(folder: Path) -> Path:
    return folder / "02773838" / f"{0:032x}.txt"


def test_the_tables_are_the_public_ones() -> None:
    assert list(CATEGORIES) == sorted(CATEGORIES) == list(PARTS)
    assert list(CATEGORIES.values()) == sorted(CATEGORIES.values())
    assert [part for parts in PARTS.values() for part in parts] == list(range(50))
    assert [len(parts) for parts in PARTS.values()] == [4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3]
    assert (len(shapenetpart.PART_NAMES), shapenetpart.PART_NAMES[49]) == (50, "Table 49")


def test_the_card_says_the_same(repository: Path) -> None:
    card = (repository / "datasets" / "shapenetpart" / "README.md").read_text()
    rows = re.findall(r"\| (\d+) \| (\w+) \| (\d+) \| (\d+) \| (\d+) to (\d+) \|", card)
    assert [(row[1], row[2]) for row in rows] == list(CATEGORIES.items())
    assert [range(int(row[4]), int(row[5]) + 1) for row in rows] == list(PARTS.values())
    assert sum(int(row[3]) for row in rows) == 12137 + 1870 + 2874 == 16881


@pytest.mark.parametrize("stored_points", [64, 2048])
def test_in_place_and_prepared_are_the_same(full: Path, tmp_path: Path, stored_points: int) -> None:
    source = shapenetpart.source(full / "shapenetpart", stored_points=stored_points)
    convert(source, tmp_path / "shapenetpart" / shapenetpart.file_name(stored_points=stored_points))
    for split in ("train", "val", "test"):
        plain = shapenetpart.load(split, full, stored_points=stored_points)
        prepared = shapenetpart.load(split, tmp_path, stored_points=stored_points)
        assert plain.shape_names == prepared.shape_names
        assert plain.class_names == prepared.class_names == tuple(CATEGORIES)
        assert (plain.num_points, prepared.num_points, plain.up_axis) == (stored_points, stored_points, "y")
        assert plain.labels.tolist() == prepared.labels.tolist() == list(range(15, -1, -1))
        index = range(16)
        torch.testing.assert_close(plain.batch(index)[0], prepared.batch(index)[0], atol=1 / 32767, rtol=0)
        assert torch.equal(plain.part_labels(index), prepared.part_labels(index))


def test_a_part_stays_with_its_point(full: Path) -> None:
    for split, seed, number in (("train", 0, 90), ("test", 2, 50)):
        clouds = shapenetpart.load(split, full, stored_points=64)
        for i, category in enumerate(reversed(CATEGORIES)):
            table = table_of(category, number, seed + 15 - i).astype(np.float32)
            known = {tuple(row[:3]): row[6] for row in table}
            points, parts = clouds.points[i].numpy(), clouds.part_labels([i])[0].tolist()
            assert [known[tuple(point)] for point in points] == parts
            assert len({tuple(point) for point in points}) == min(64, number)


@pytest.mark.parametrize("prepared", [False, True])
def test_trainval_is_train_and_val_as_in_the_published_results(full: Path, tmp_path: Path, prepared: bool) -> None:
    root = full
    if prepared:
        root = tmp_path
        source = shapenetpart.source(full / "shapenetpart", stored_points=64)
        convert(source, root / "shapenetpart" / shapenetpart.file_name(stored_points=64))
    train, val, test = (shapenetpart.load(split, root, stored_points=64) for split in shapenetpart.SPLITS)
    both = shapenetpart.load("train", root, stored_points=64, trainval=True)
    assert len(both) == 32
    assert both.shape_names == (train.shape_names or ()) + (val.shape_names or ())
    for part, index in ((train, range(16)), (val, range(16, 32))):
        for ours, theirs in zip(both.batch(index), part.batch(range(16)), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(both.part_labels(index), part.part_labels(range(16)))
    same = shapenetpart.load("test", root, stored_points=64, trainval=True)
    assert same.shape_names == test.shape_names
    with pytest.raises(MissingSplitError, match=r"trainval=true puts val into train; choose train or test$"):
        shapenetpart.load("val", root, stored_points=64, trainval=True)
    data = Data(name="shapenetpart", root=str(root), stored_points=64, num_points=64, trainval=True, val_fraction=0)
    splits = load_splits(data, seed=0)
    assert (len(splits.train), splits.val, len(splits.test)) == (32, None, 16)


def test_all_points_in_their_order_where_the_number_fits(folder: Path) -> None:
    clouds = shapenetpart.load("train", folder.parent, stored_points=12)
    np.testing.assert_array_equal(clouds.points[0], table_of("Bag", 12, 0)[:, :3].astype(np.float32))
    assert clouds.part_labels([0]).tolist() == [[4, 5] * 6]
    assert clouds.shape_names == (f"02773838/{0:032x}",)


def test_parts_may_be_written_as_integers(folder: Path) -> None:
    before = shapenetpart.load("train", folder.parent, stored_points=9)
    file_of(folder).write_text(file_of(folder).read_text().replace(".000000\n", "\r\n"))
    after = shapenetpart.load("train", folder.parent, stored_points=9)
    assert torch.equal(before.points, after.points)
    assert torch.equal(before.part_labels([0]), after.part_labels([0]))


def test_the_number_of_points_is_part_of_the_name(full: Path, tmp_path: Path) -> None:
    assert shapenetpart.file_name() == "shapenetpart.h5"
    assert shapenetpart.file_name(stored_points=1024) == "shapenetpart_1024.h5"
    convert(shapenetpart.source(full / "shapenetpart", stored_points=6), path := tmp_path / "any.h5")
    with pytest.raises(DataError, match=r"any.h5 has 6 points per shape, not stored_points=2048"):
        shapenetpart.load("test", tmp_path, path=str(path))
    assert len(shapenetpart.load("test", tmp_path, path=str(path), stored_points=6)) == 16


@pytest.mark.parametrize("stored_points", [0, -1, 10**9])
def test_impossible_numbers_of_points(folder: Path, stored_points: int) -> None:
    for call in (
        shapenetpart.source,
        lambda f, stored_points: shapenetpart.load("test", f.parent, stored_points=stored_points),
    ):
        with pytest.raises(ConfigError, match=f"stored_points={stored_points}: should be 1 to 100000"):
            call(folder, stored_points=stored_points)


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return change


LIST = "train_test_split/shuffled_train_file_list.json"
TABLE = "synsetoffset2category.txt"
BAG = "shape_data/02773838/"

SET_DEFECTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no list", lambda f: (f / LIST).unlink(), "shuffled_train_file_list.json is missing"),
    ("list is a folder", lambda f: folder_instead(f / LIST), "shuffled_train_file_list.json is missing, or not a file"),
    ("no table", lambda f: (f / TABLE).unlink(), "synsetoffset2category.txt is missing"),
    ("no shapes", lambda f: (f / "02773838").rename(f / "x"), "cannot list the folder .*02773838"),
    ("empty list", write(LIST, ""), "list.json is not JSON"),
    ("half a list", write(LIST, f'["{BAG}'), "list.json is not JSON"),
    ("nested list", write(LIST, "[" * 10**5), "list.json is not JSON"),
    ("huge number", write(LIST, "[" + "9" * 10**4 + "]"), "list.json is not JSON"),
    ("dict", write(LIST, '{"a": 1}'), "list.json is not a list of names"),
    ("numbers", write(LIST, "[1, 2]"), "list.json is not a list of names"),
    ("not UTF-8", write(LIST, b"\xff\xfe["), "list.json is not text: byte 0"),
    ("missing", write(LIST, f'["{BAG}gone"]'), "names 1 of 1 shapes that are missing, the first: 02773838/gone.txt"),
    ("twice", write(LIST, json.dumps([f"{BAG}{0:032x}"] * 2)), "names shape_data/.*, which is there already"),
    ("in two splits", write(LIST, json.dumps([f"{BAG}{16:032x}"])), "val_file_list.json names .* there already"),
    ("another synset", write(LIST, '["shape_data/99999999/a"]'), "not shape_data/<synset>/<model>"),
    ("path", write(LIST, f'["{BAG}../../secret"]'), "not shape_data/<synset>/<model> of the 16"),
    ("hidden", write(LIST, f'["{BAG}.."]'), "not shape_data/<synset>/<model> of the 16"),
    ("null", write(LIST, f'["{BAG}a\\u0000"]'), "not shape_data/<synset>/<model> of the 16"),
    ("lone surrogate", write(LIST, f'["{BAG}\\ud800"]'), "not shape_data/<synset>/<model> of the 16"),
    ("other table", write(TABLE, "Bag\t02691156\n"), r"synsetoffset2category.txt has the line 'Bag\\t02691156'"),
    ("garbled table", write(TABLE, "Bag 02773838"), "which is not of ShapeNetPart"),
    ("binary table", write(TABLE, b"\x80"), "is not text: byte 0"),
]


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in SET_DEFECTS], ids=[d[0] for d in SET_DEFECTS])
def test_damaged_lists(folder: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    with pytest.raises(DataError, match=message) as caught:
        shapenetpart.source(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


ROW = "0.1 0.2 0.3 0 0 1 4\n"

SHAPE_DEFECTS: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "has no points"),
    ("blank", " \n\n", "has no points"),
    ("comma", ROW.replace(" ", ","), "is not a table of numbers"),
    ("six columns", ROW.replace(" 4\n", "\n"), "has 6 columns, not the 7"),
    ("ragged", ROW + ROW[:-3] + "\n" + ROW, "is not a table of numbers"),
    ("truncated", ROW + ROW[:9], "is not a table of numbers"),
    ("words", "a b c d e f g\n", "is not a table of numbers"),
    ("NaN", ROW + ROW.replace("0.2", "nan"), "nan among the coordinates"),
    ("infinity", ROW.replace("0.2", "-inf"), "-inf among the coordinates"),
    ("overflow", ROW.replace("0.2", "1e999"), "inf among the coordinates"),
    ("part of another", ROW + ROW.replace(" 4\n", " 6.000000\n"), "part of point 1 is 6; a shape of Bag has 4 to 5"),
    ("negative part", ROW.replace(" 4\n", " -1\n"), "part of point 0 is -1"),
    ("wrapped part", ROW.replace(" 4\n", " 260\n"), "part of point 0 is 260"),
    ("half a part", ROW.replace(" 4\n", " 4.5\n"), "part of point 0 is 4.5"),
    ("NaN part", ROW.replace(" 4\n", " nan\n"), "part of point 0 is nan"),
    ("not UTF-8", b"\xff" + ROW.encode(), "is not text: byte 0"),
    ("null bytes", b"\0" * 100, "is not a table of numbers"),
    ("large", b"0" * (2**24 + 1), "more than 16777216 bytes"),
]


@pytest.mark.parametrize(("content", "message"), [d[1:] for d in SHAPE_DEFECTS], ids=[d[0] for d in SHAPE_DEFECTS])
def test_damaged_shapes(folder: Path, content: str | bytes, message: str) -> None:
    write(f"02773838/{0:032x}.txt", content)(folder)
    with pytest.raises(DataError, match=message) as caught:
        shapenetpart.load("train", folder.parent)
    assert str(file_of(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(shapenetpart.load("test", folder.parent)) == 1, "the others can be read"


def test_one_point_is_repeated(folder: Path) -> None:
    file_of(folder).write_text(ROW.strip())
    clouds = shapenetpart.load("train", folder.parent, stored_points=3)
    assert clouds.points[0].tolist() == [pytest.approx([0.1, 0.2, 0.3])] * 3
    assert clouds.part_labels([0]).tolist() == [[4, 4, 4]]


def test_files_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    source = shapenetpart.source(folder)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(DataError, match=r"cannot read .*02773838/0.*\.txt: .*Permission denied"):
            source.clouds("train")
        with pytest.raises(DataError, match=r"cannot read .*synsetoffset2category.txt: .*Permission denied"):
            shapenetpart.source(folder)
    file_of(folder).unlink()
    file_of(folder).symlink_to("nowhere")
    with pytest.raises(DataError, match="is missing, or not a file"):
        source.clouds("train")
    file_of(folder).unlink()
    os.mkfifo(file_of(folder))
    with pytest.raises(DataError, match="is missing, or not a file"):
        source.clouds("train")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pc-ewa prepare shapenetpart"):
        shapenetpart.load("train", tmp_path)
    (tmp_path / "shapenetpart").mkdir()
    with pytest.raises(DataError, match=r"holds no shapenetpart in any published format"):
        shapenetpart.load("train", tmp_path)


@FUZZ
@given(EDITS)
def test_corrupted_shapes(folder: Path, changes: Edits) -> None:
    content = file_of(folder).read_bytes()
    file_of(folder).write_bytes(edited(content, changes))
    result = attempt(lambda: shapenetpart.load("train", folder.parent, stored_points=8))
    file_of(folder).write_bytes(content)
    if isinstance(result, Clouds):
        assert result.points.shape == (1, 8, 3)
        assert result.points.isfinite().all()
        assert set(result.part_labels([0]).flatten().tolist()) <= {4, 5}
    else:
        assert str(file_of(folder)) in str(result)


@FUZZ
@given(EDITS, st.sampled_from([LIST, TABLE]))
def test_corrupted_lists(folder: Path, changes: Edits, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(edited(content, changes))
    result = attempt(lambda: shapenetpart.source(folder))
    (folder / name).write_bytes(content)
    if isinstance(result, Source):
        assert len(result.items) == 3
    else:
        assert str(folder) in str(result)
