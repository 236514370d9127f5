"""ModelNet40 and ModelNet10 in every published format, written here as the published files look."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.data import Clouds, MissingSplitError, read_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import read_shape
from pc_ewa.data.published.modelnet import MODELNET10, MODELNET40
from pc_ewa.data.published.modelnet_common import CLASSES
from pc_ewa.data.source import Source
from pc_ewa.errors import DataError

TEN = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]
POINTS = np.random.RandomState(0).uniform(-0.6, 0.6, (80, 7, 6)).round(6).astype(np.float32)
SPLITS = ("train", "test")
Shape = tuple[str, int, str, np.ndarray]  # name, label, split, coordinates


def shapes(classes: tuple[str, ...]) -> list[Shape]:
    """Two of each class: number 1 to train, number 2 to test."""
    rows = []
    for split in SPLITS:
        for label, kind in enumerate(classes):
            number = SPLITS.index(split)
            rows.append((f"{kind}_{number + 1:04}", label, split, POINTS[2 * label + number]))
    return rows


def write_lists(home: Path, classes: tuple[str, ...], prefix: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{prefix}_shape_names.txt").write_text("".join(f"{kind}\n" for kind in classes))
    for split in SPLITS:
        names = [name for name, _, where, _ in shapes(classes) if where == split]
        (home / f"{prefix}_{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_resampled(folder: Path, number: str = "40") -> Path:
    home = folder / "modelnet40_normal_resampled"
    classes = CLASSES[number]
    write_lists(home, classes, f"modelnet{number}")
    for name, label, _, points in shapes(classes):
        (home / classes[label]).mkdir(exist_ok=True)
        lines = [",".join(f"{value:.6f}" for value in row) + "\n" for row in points]
        (home / classes[label] / f"{name}.txt").write_text("".join(lines))
    return home


def write_caches(folder: Path, lists: bool = True) -> Path:
    home = folder / "modelnet40_normal_resampled"
    home.mkdir(parents=True)
    for split in SPLITS:
        rows = [row for row in shapes(CLASSES["40"]) if row[2] == split]
        content = [[row[3] for row in rows], [np.array([row[1]]).astype(np.int32) for row in rows]]
        (home / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(content, protocol=3))
    if lists:
        write_lists(home, CLASSES["40"], "modelnet40")
    return home


def write_shards(folder: Path, names: bool = True) -> Path:
    home = folder / "modelnet40_ply_hdf5_2048"
    home.mkdir(parents=True)
    (home / "shape_names.txt").write_text("\n".join(CLASSES["40"]) + "\n")
    for split in SPLITS:
        rows = [row for row in shapes(CLASSES["40"]) if row[2] == split]
        listed = ""
        for i, part in enumerate([rows[:25], rows[25:]]):
            with h5py.File(home / f"ply_data_{split}{i}.h5", "w") as file:
                stack = np.stack([row[3] for row in part])
                file.create_dataset("data", data=stack[..., :3], compression="gzip", chunks=(4, 7, 3))
                file.create_dataset("normal", data=stack[..., 3:])
                file.create_dataset("faceId", data=np.zeros(stack.shape[:2], np.int32))
                file.create_dataset("label", data=np.array([[row[1]] for row in part], np.uint8))
            listed += f"data/modelnet40_ply_hdf5_2048/ply_data_{split}{i}.h5\n"
            if names:
                entries = [f"{CLASSES['40'][row[1]]}/{row[0]}.ply" for row in part]
                (home / f"ply_data_{split}_{i}_id2file.json").write_text(json.dumps(entries))
        (home / f"{split}_files.txt").write_text(listed)
    return home


def write_meshes(folder: Path, number: str = "40") -> Path:
    home = folder / f"ModelNet{number}"
    classes = CLASSES[number]
    for name, label, split, points in shapes(classes):
        place = home / classes[label] / split
        place.mkdir(parents=True)
        header = "OFF4 2 0" if label % 3 == 0 else "OFF\n4 2 0"
        vertices = "\n".join(" ".join(f"{1000 * value:.6f}" for value in row[:3]) for row in points[:4])
        (place / f"{name}.off").write_text(f"{header}\n{vertices}\n3 0 1 2\n3 0 3 1 \n")
        (place / f"._{name}.off").write_bytes(b"\0\5\26\7")  # what macOS leaves in archives
    return home


WRITERS: dict[str, Callable[[Path], Path]] = {
    "resampled": write_resampled,
    "caches": write_caches,
    "shards": write_shards,
    "meshes": write_meshes,
}
POINT_FORMATS = ["resampled", "caches", "shards"]


def read_all(source: Source) -> list[np.ndarray]:
    """Read every shape; the caches have 7 points in files that are named after 8192."""
    return [item.read().points for item in source.items]


def check(clouds: Clouds, split: str, expected: list[Shape], tolerance: float = 0) -> None:
    rows = [row for row in expected if row[2] == split]
    points, labels = clouds.batch(range(len(clouds)))
    assert clouds.shape_names == tuple(row[0] for row in rows)
    assert labels.tolist() == [row[1] for row in rows]
    np.testing.assert_allclose(points.numpy(), np.stack([row[3][:, :3] for row in rows]), atol=tolerance)


def test_classes_are_in_the_published_order() -> None:
    assert len(CLASSES["40"]) == 40
    assert list(CLASSES["40"]) == sorted(CLASSES["40"])
    assert [CLASSES["40"].index(kind) for kind in ("airplane", "chair", "night_stand", "xbox")] == [0, 8, 23, 39]
    assert list(CLASSES["10"]) == TEN


@pytest.mark.parametrize("inside", [False, True], ids=["parent", "own folder"])
@pytest.mark.parametrize("form", POINT_FORMATS)
def test_points_labels_names_and_splits_in_place_and_converted(tmp_path: Path, form: str, inside: bool) -> None:
    if form == "caches":
        global_points = np.resize(POINTS, (80, 8192, 6))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "POINTS", global_points)
            home, expected = write_caches(tmp_path / "modelnet40"), shapes(CLASSES["40"])
    else:
        home, expected = WRITERS[form](tmp_path / "modelnet40"), shapes(CLASSES["40"])
    path = str(home) if inside else None
    for split in SPLITS:
        clouds = MODELNET40.load(split, tmp_path, path=path)
        check(clouds, split, expected)
        assert (clouds.class_names, clouds.up_axis, clouds.name) == (CLASSES["40"], "y", "modelnet40")
    with pytest.raises(MissingSplitError):
        MODELNET40.load("val", tmp_path, path=path)
    prepared = tmp_path / "modelnet40" / "modelnet40.h5"
    done = convert(MODELNET40.source(home if inside else home.parent), prepared)
    assert (done.shapes, done.skipped) == (80, [])
    shutil.rmtree(home)
    for split in SPLITS:
        check(MODELNET40.load(split, tmp_path), split, expected, tolerance=2e-5)
        check(MODELNET40.load(split, tmp_path, path=str(prepared)), split, expected, tolerance=2e-5)
    with h5py.File(prepared) as file:
        assert "academic" in file.attrs["licence"]
        assert "40 train and 40 test shapes" in file.attrs["licence"]


@pytest.mark.parametrize("writer", [write_resampled, write_meshes])
def test_modelnet10(tmp_path: Path, writer: Callable[[Path, str], Path]) -> None:
    home = writer(tmp_path / "anywhere", "10")
    found = MODELNET10.source(tmp_path / "anywhere")
    assert (list(found.class_names), len(found.items)) == (TEN, 20)
    assert [item.label for item in found.items if item.split == "test"] == list(range(10))
    clouds = MODELNET10.load("train", tmp_path, path=str(home))
    assert (clouds.name, len(clouds)) == ("modelnet10", 10)
    with pytest.raises(DataError, match="holds no modelnet40"):
        MODELNET40.source(home)


def test_meshes_of_modelnet40_are_not_taken_for_modelnet10(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no modelnet10 .*pc-ewa prepare modelnet10"):
        MODELNET10.source(write_meshes(tmp_path))


def test_meshes_become_clouds_in_the_unit_sphere(tmp_path: Path) -> None:
    home = write_meshes(tmp_path / "modelnet40")
    found = MODELNET40.source(home.parent)
    again = MODELNET40.source(home)
    assert (found.up_axis, found.num_points, len(found.items)) == ("z", 8192, 80)
    assert [(item.name, item.split) for item in found.items[:2]] == [
        ("airplane_0001", "train"),
        ("airplane_0002", "test"),
    ]
    first = found.items[4].read().points
    assert np.array_equal(first, again.items[4].read().points)
    assert not np.array_equal(first, found.items[5].read().points)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(first, axis=1).max() == pytest.approx(1, abs=1e-5)
    convert(found, tmp_path / "few.h5", num_points=64)
    clouds = read_hdf5(tmp_path / "few.h5", "train", name="modelnet40")
    assert (clouds.num_points, len(clouds), clouds.up_axis) == (64, 40, "z")
    names = clouds.shape_names
    assert names is not None
    assert names[:2] == ("airplane_0001", "bathtub_0001")


def test_caches_and_shards_without_lists_of_names(tmp_path: Path) -> None:
    caches = MODELNET40.source(write_caches(tmp_path / "a", lists=False).parent)
    shards = MODELNET40.source(write_shards(tmp_path / "b", names=False).parent)
    assert [item.name for item in (caches.items[0], caches.items[79])] == ["train_00000", "test_00039"]
    assert [item.name for item in (shards.items[0], shards.items[79])] == [
        "ply_data_train0_0000",
        "ply_data_test1_0014",
    ]
    assert len({item.name for item in caches.items}) == len({item.name for item in shards.items}) == 80
    assert [item.label for item in caches.items] == [item.label for item in shards.items] == [*range(40), *range(40)]


def test_the_caches_come_before_the_texts_and_those_before_the_others(tmp_path: Path) -> None:
    for writer in (write_caches, write_shards, write_meshes):
        writer(tmp_path)
    write_resampled(tmp_path)
    assert "caches" in MODELNET40.source(tmp_path).licence
    for split in SPLITS:
        (tmp_path / "modelnet40_normal_resampled" / f"modelnet40_{split}_8192pts_fps.dat").unlink()
    assert MODELNET40.source(tmp_path).licence.count("as modelnet40_normal_resampled") == 1
    shutil.rmtree(tmp_path / "modelnet40_normal_resampled")
    assert "ply_hdf5" in MODELNET40.source(tmp_path).licence


def test_links_are_followed(tmp_path: Path) -> None:
    home = write_resampled(tmp_path / "real")
    (tmp_path / "modelnet40").symlink_to(home.parent)
    path = home / "bed" / "bed_0001.txt"
    path.rename(tmp_path / "elsewhere.txt")
    path.symlink_to(tmp_path / "elsewhere.txt")
    assert len(MODELNET40.load("train", tmp_path)) == 40
    (tmp_path / "elsewhere.txt").unlink()
    with pytest.raises(DataError, match=r"bed_0001\.txt: listed in modelnet40_train\.txt, but not there"):
        MODELNET40.load("train", tmp_path)


def write(content: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def replace(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def put(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[key]
            if value is not None:
                file[key] = value

    return change


def huge(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for key, shape in {"data": (2**40, 2048, 3), "label": (2**40, 1)}.items():
            del file[key]
            file.create_dataset(key, shape, "f4" if key == "data" else "u1", chunks=(1, *shape[1:]))


def dump(*content: object) -> Callable[[Path], object]:
    return write(pickle.dumps(list(content)))


CLOUD, LABEL = POINTS[0], np.array([0], np.int32)
TXT, DAT, H5 = "bed/bed_0002.txt", "modelnet40_test_8192pts_fps.dat", "ply_data_test1.h5"
OFF = "bed/test/bed_0002.off"
SQUARE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
DEFECTS: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("resampled", TXT, write(""), "it is empty"),
    ("resampled", TXT, write("1,2,3\n" * 7), "line 1 is '1,2,3', not x,y,z,nx,ny,nz"),
    ("resampled", TXT, write("1,2,3,4,5,6\n1,2,3,4,5\n"), "line 2 is"),
    ("resampled", TXT, write("1,2,a,4,5,6\n"), "could not convert"),
    ("resampled", TXT, write("1,2,,4,5,6\n"), "could not convert"),
    ("resampled", TXT, write("nan,2,3,4,5,6\n"), "nan among the coordinates"),
    ("resampled", TXT, write("1,2,-1e99,4,5,6\n"), "-inf among the coordinates"),
    ("resampled", TXT, write(b"1,2,\xff,4,5,6\n"), "decode byte"),
    ("resampled", TXT, Path.unlink, "not there"),
    ("resampled", TXT, folder_instead, "not there"),
    ("resampled", TXT, dangling, "not there"),
    ("resampled", "modelnet40_test.txt", Path.unlink, "missing, or no file"),
    ("resampled", "modelnet40_test.txt", folder_instead, "missing, or no file"),
    ("resampled", "modelnet40_test.txt", dangling, "missing, or no file"),
    ("resampled", "modelnet40_test.txt", write(b"bed_0002\n\xff\n"), "is not UTF-8"),
    ("resampled", "modelnet40_test.txt", write("\n \n"), "it is empty"),
    ("resampled", "modelnet40_test.txt", write("bed_0002\nbed_0002\n"), "'bed_0002' is listed twice"),
    ("resampled", "modelnet40_test.txt", write("bed_0001\n"), "'bed_0001' is listed twice"),
    ("resampled", "modelnet40_test.txt", write("spoon_0002\n"), "'spoon_0002' is of no class"),
    ("resampled", "modelnet40_test.txt", write("../../etc_0002\n"), "is of no class"),
    ("resampled", "modelnet40_shape_names.txt", replace(b"bed\n", b""), "'bench' where 'bed' belongs"),
    ("resampled", "modelnet40_shape_names.txt", replace(b"xbox\n", b""), "None where 'xbox' belongs"),
    ("resampled", "modelnet40_shape_names.txt", replace(b"xbox\n", b"xbox\nyoyo\n"), "'yoyo' where None belongs"),
    ("caches", DAT, Path.unlink, "missing, or no file"),
    ("caches", DAT, pipe, "missing, or no file"),
    ("caches", DAT, lambda path: path.write_bytes(path.read_bytes()[:-3000]), "damaged near byte"),
    ("caches", DAT, dump([CLOUD] * 40), "no list of points and list of labels"),
    ("caches", DAT, dump([], []), "0 shapes, 0 labels"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL] * 39), "40 shapes, 39 labels"),
    ("caches", DAT, dump([CLOUD] * 3, [LABEL] * 3), "40 names in the list beside it"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL] * 40), "shape 1 is airplane, but bathtub_0002 in the list"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL + 40] * 40), "shape 0 has label 40, allowed are 0 to 39"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL + 0.5] * 40), "shape 0 has label a float"),
    ("caches", DAT, dump([CLOUD[0]] * 40, [[i] for i in range(40)]), "has label a list"),
    ("caches", DAT, dump([CLOUD[0]] * 40, list(range(40))), r"shape 0 is \(6,\) float32, no array"),
    ("caches", DAT, dump(["cloud"] * 40, list(range(40))), "shape 0 is str, no array"),
    ("caches", DAT, dump([CLOUD[:0]] * 40, list(range(40))), "shape 0: no points"),
    ("caches", DAT, dump([CLOUD * np.nan] * 40, list(range(40))), "shape 0: nan among"),
    ("caches", DAT, dump([CLOUD > 0] * 40, list(range(40))), "shape 0: points are .* bool"),
    ("caches", DAT, dump(np.array([CLOUD], object)), "refused an array of type O8"),
    ("shards", H5, Path.unlink, r"listed in test_files\.txt, but not there"),
    ("shards", H5, folder_instead, "not there"),
    ("shards", H5, write("x"), "cannot read"),
    ("shards", H5, lambda path: path.write_bytes(path.read_bytes()[:-10]), "cannot read"),
    ("shards", H5, put("data", None), "no data or no label .found: faceId, label, normal"),
    ("shards", H5, put("data", np.zeros((15, 7, 2), "f4")), "no clouds"),
    ("shards", H5, put("data", np.zeros((15, 0, 3), "f4")), "no clouds"),
    ("shards", H5, put("data", np.zeros((15, 7, 3), "S4")), "no clouds"),
    ("shards", H5, put("data", h5py.Empty("f4")), "no clouds"),
    ("shards", H5, huge, r"data is \(1099511627776, 2048, 3\)"),
    ("shards", H5, put("data", np.full((15, 7, 3), np.inf, "f4")), "shape 0: inf among"),
    ("shards", H5, put("data", np.zeros((15, 1, 3), "f4")), "clouds of 1 points, others have 7"),
    ("shards", H5, put("label", np.zeros((14, 1), "u1")), "not one integer for each of 15"),
    ("shards", H5, put("label", np.zeros(15, "f4")), "not one integer"),
    ("shards", H5, put("label", np.full(15, 40, "u1")), "shape 0 has label 40"),
    ("shards", H5, put("label", np.zeros(15, "i8")), "name 0 is .*, but the shape is airplane"),
    ("shards", "ply_data_test_1_id2file.json", write("[1"), "cannot read"),
    ("shards", "ply_data_test_1_id2file.json", write("[" * 100000), "cannot read"),
    ("shards", "ply_data_test_1_id2file.json", write('["a"]'), "no list of 15 names"),
    ("shards", "ply_data_test_1_id2file.json", write(json.dumps([1] * 15)), "no list of 15 names"),
    ("shards", "ply_data_test_1_id2file.json", folder_instead, "missing, or no file"),
    ("shards", "shape_names.txt", replace(b"bed\n", b"cot\n"), "'cot' where 'bed' belongs"),
    ("shards", "test_files.txt", replace(b"test1", b"test0"), r"ply_data_test0\.h5 is listed twice"),
    ("shards", "test_files.txt", replace(b"test1", b"train0"), r"ply_data_train0\.h5 is listed twice"),
    ("shards", "test_files.txt", replace(b"test1", b"test9"), "not there"),
    ("shards", "test_files.txt", pipe, "missing, or no file"),
    ("meshes", OFF, write(""), " as off: "),
    ("meshes", OFF, write("ply\n4 2 0\n"), " as off: "),
    ("meshes", OFF, write("OFF\n4\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n0 2 0\n{SQUARE}3 0 1 2\n3 0 2 3\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 0 0\n{SQUARE}"), "no faces to draw points from"),
    ("meshes", OFF, write(f"OFF\n4 2 0\n{SQUARE}3 0 1 2\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n999999999 999999999 0\n{SQUARE}"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}3 0 1 4\n"), r" as off: a face has vertex (4|-1)|no faces to draw"),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}3 0 1 -1\n"), r" as off: a face has vertex (4|-1)|no faces to draw"),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}2 0 1\n"), r" as off: a face has vertex (4|-1)|no faces to draw"),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}3 0 1 1.5\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}4 0 1 2\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}x 0 1 2\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}3 0 1 1\n"), "no area"),
    ("meshes", OFF, write("OFF\n3 1 0\n0 0 0\n1e200 0 0\n0 1e200 0\n3 0 1 2\n"), "no area that can be measured"),
    ("meshes", OFF, write("OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n"), "as off: nan among"),
    ("meshes", OFF, write("OFF\n3 1 0\n0 0\n1 0 0\n0 1 0\n3 0 1 2\n"), " as off: "),
    ("meshes", OFF, write(b"OFF\n3 1 0\n0 0 \xff\n"), " as off: "),
    ("meshes", OFF, Path.unlink, "no .off files"),
    ("meshes", OFF, folder_instead, "no .off files"),
    ("meshes", OFF, dangling, "no .off files"),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format once, with few points."""
    return {form: writer(tmp_path_factory.mktemp(form)) for form, writer in WRITERS.items()}


@pytest.mark.parametrize(("form", "file", "damage", "defect"), DEFECTS)
def test_defects_are_named_with_the_file(
    pristine: dict[str, Path], tmp_path: Path, form: str, file: str, damage: Callable[[Path], object], defect: str
) -> None:
    home = tmp_path / "copy"
    shutil.copytree(pristine[form], home, copy_function=os.link)
    shutil.copy2(home / file, tmp_path / "file")  # not the linked one
    (home / file).unlink()
    shutil.move(tmp_path / "file", home / file)
    damage(home / file)
    with pytest.raises(DataError, match=defect) as caught:
        read_all(MODELNET40.source(home))
    message = str(caught.value)
    assert str(home) in message
    assert (home / file).name in message or f"{(home / file).parent}: " in message
    assert "\n" not in message


def test_denied_files_are_refused(pristine: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for form, method in [
        ("resampled", "pathlib.Path.read_text"),
        ("meshes", "os.scandir"),
        ("shards", "h5py.File"),
        ("caches", "mmap.mmap"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(method, denied)
            with pytest.raises(DataError, match=f"cannot read {pristine[form]}.*denied"):
                read_all(MODELNET40.source(pristine[form]))


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"modelnet40 is no folder; pc-ewa prepare modelnet40"):
        MODELNET40.load("train", tmp_path)


EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "cut"]), st.floats(0, 1), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)
DAMAGED = {
    "resampled": [TXT, "modelnet40_test.txt", "modelnet40_shape_names.txt"],
    "caches": [DAT, "modelnet40_test.txt"],
    "shards": [H5, "test_files.txt", "ply_data_test_1_id2file.json"],
    "meshes": [OFF],
}
CASES = [(form, file) for form, files in DAMAGED.items() for file in files]


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(CASES), edits=EDITS)
def test_damaged_bytes_are_refused_or_read_soundly(
    pristine: dict[str, Path], case: tuple[str, str], edits: list[tuple[str, float, bytes]]
) -> None:
    form, name = case
    path = pristine[form] / name
    sound = content = path.read_bytes()
    for kind, where, new in edits:
        at = int(where * len(content))
        skip = {"flip": len(new), "insert": 0, "delete": len(new), "cut": len(content)}[kind]
        content = content[:at] + (new if kind in ("flip", "insert") else b"") + content[at + skip :]
    message = None
    try:
        path.write_bytes(content)
        source = MODELNET40.source(pristine[form])
        items = [item for item in source.items if item.split == "test"]
        for item in [*items[:3:2], *items[-1:]]:
            points = item.read().points
            assert points.ndim == 2
            assert np.isfinite(points).all()
            assert 0 <= item.label < 40
    except DataError as error:
        message = str(error)
    finally:
        path.write_bytes(sound)
    assert message is None or (str(pristine[form]) in message and "\n" not in message), message


def test_off_with_comments_colors_and_polygons(tmp_path: Path) -> None:
    path = tmp_path / "square.off"
    path.write_text(f"OFF # a square\n\n# and a line\n4 2 5\n{SQUARE}\n4  0 1 2 3  255 0 0 #red\n2 0 1\n")
    vertices, faces = read_shape(path)
    assert vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_surface_points_follow_the_area() -> None:
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]], float)
    faces = np.array([[0, 1, 2], [3, 4, 5], [3, 3, 3]])  # of area 1.5, 0.5 and none
    points = sample_surface(vertices, faces, 40_000, np.random.RandomState(0))
    low = points[:, 2] < 1
    assert low.mean() == pytest.approx(0.75, abs=0.01)
    assert set(points[:, 2]) == {0, 5}
    assert (points[low, 0] / 3 + points[low, 1]).max() <= 1 + 1e-12
    assert points.min() >= 0
    np.testing.assert_allclose(points[low].mean(0), [1, 1 / 3, 0], atol=0.02)
    # In each of the four triangles between corners and middles as often.
    halves = [(points[low, 0] / 3 > 0.5).mean(), (points[low, 1] > 0.5).mean()]
    np.testing.assert_allclose(halves, 0.25, atol=0.01)
    with pytest.raises(ValueError, match="no area"):
        sample_surface(vertices, faces[2:], 5, np.random.RandomState(0))
