"""Damaged files of ModelNet are refused in one line that names the file."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from damage import EDITS, Edits, dangling, edited, folder_instead, pipe_instead, replace, write
from hypothesis import given, settings
from hypothesis import strategies as st
from modelnet_files import POINTS, WRITERS, read_all

from pc_ewa.data.published.modelnet import MODELNET40
from pc_ewa.errors import DataError


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
    ("resampled", "modelnet40_test.txt", Path.unlink, "missing, or not a file"),
    ("resampled", "modelnet40_test.txt", folder_instead, "missing, or not a file"),
    ("resampled", "modelnet40_test.txt", dangling, "missing, or not a file"),
    ("resampled", "modelnet40_test.txt", write(b"bed_0002\n\xff\n"), "is not UTF-8"),
    ("resampled", "modelnet40_test.txt", write("\n \n"), "it is empty"),
    ("resampled", "modelnet40_test.txt", write("bed_0002\nbed_0002\n"), "'bed_0002' is listed twice"),
    ("resampled", "modelnet40_test.txt", write("bed_0001\n"), "'bed_0001' is listed twice"),
    ("resampled", "modelnet40_test.txt", write("spoon_0002\n"), "'spoon_0002' is of no class"),
    ("resampled", "modelnet40_test.txt", write("../../etc_0002\n"), "is of no class"),
    ("resampled", "modelnet40_shape_names.txt", replace(b"bed\n", b""), "'bench' where 'bed' belongs"),
    ("resampled", "modelnet40_shape_names.txt", replace(b"xbox\n", b""), "None where 'xbox' belongs"),
    ("resampled", "modelnet40_shape_names.txt", replace(b"xbox\n", b"xbox\nyoyo\n"), "'yoyo' where None belongs"),
    ("caches", DAT, Path.unlink, "missing, or not a file"),
    ("caches", DAT, pipe_instead, "missing, or not a file"),
    ("caches", DAT, lambda path: path.write_bytes(path.read_bytes()[:-3000]), "damaged near byte"),
    ("caches", DAT, dump([CLOUD] * 40), "not a list of points and a list of labels"),
    ("caches", DAT, dump([], []), "0 shapes, 0 labels"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL] * 39), "40 shapes, 39 labels"),
    ("caches", DAT, dump([CLOUD] * 3, [LABEL] * 3), "40 names in the list beside it"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL] * 40), "shape 1 is airplane, but bathtub_0002 in the list"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL + 40] * 40), "shape 0 has label 40, allowed are 0 to 39"),
    ("caches", DAT, dump([CLOUD] * 40, [LABEL + 0.5] * 40), "shape 0 has label a float"),
    ("caches", DAT, dump([CLOUD[0]] * 40, [[i] for i in range(40)]), "has label a list"),
    ("caches", DAT, dump([CLOUD[0]] * 40, list(range(40))), r"shape 0 is \(6,\) float32, not an array"),
    ("caches", DAT, dump(["cloud"] * 40, list(range(40))), "shape 0 is str, not an array"),
    ("caches", DAT, dump([CLOUD[:0]] * 40, list(range(40))), "shape 0: no points"),
    ("caches", DAT, dump([CLOUD * np.nan] * 40, list(range(40))), "shape 0: nan among"),
    ("caches", DAT, dump([CLOUD > 0] * 40, list(range(40))), "shape 0: points are .* bool"),
    ("caches", DAT, dump(np.array([CLOUD], object)), "refused an array of type O8"),
    ("shards", H5, Path.unlink, r"listed in test_files\.txt, but not there"),
    ("shards", H5, folder_instead, "not there"),
    ("shards", H5, write("x"), "cannot read"),
    ("shards", H5, lambda path: path.write_bytes(path.read_bytes()[:-10]), "cannot read"),
    ("shards", H5, put("data", None), "no data or no label .found: faceId, label, normal"),
    ("shards", H5, put("data", np.zeros((15, 7, 2), "f4")), "not clouds"),
    ("shards", H5, put("data", np.zeros((15, 0, 3), "f4")), "not clouds"),
    ("shards", H5, put("data", np.zeros((15, 7, 3), "S4")), "not clouds"),
    ("shards", H5, put("data", h5py.Empty("f4")), "not clouds"),
    ("shards", H5, huge, r"data is \(1099511627776, 2048, 3\)"),
    ("shards", H5, put("data", np.full((15, 7, 3), np.inf, "f4")), "shape 0: inf among"),
    ("shards", H5, put("data", np.zeros((15, 1, 3), "f4")), "clouds of 1 points, others have 7"),
    ("shards", H5, put("label", np.zeros((14, 1), "u1")), "not one integer for each of 15"),
    ("shards", H5, put("label", np.zeros(15, "f4")), "not one integer"),
    ("shards", H5, put("label", np.full(15, 40, "u1")), "shape 0 has label 40"),
    ("shards", H5, put("label", np.zeros(15, "i8")), "name 0 is .*, but the shape is airplane"),
    ("shards", "ply_data_test_1_id2file.json", write("[1"), "cannot read"),
    ("shards", "ply_data_test_1_id2file.json", write("[" * 100000), "cannot read"),
    ("shards", "ply_data_test_1_id2file.json", write('["a"]'), "not a list of 15 names"),
    ("shards", "ply_data_test_1_id2file.json", write(json.dumps([1] * 15)), "not a list of 15 names"),
    ("shards", "ply_data_test_1_id2file.json", folder_instead, "missing, or not a file"),
    ("shards", "shape_names.txt", replace(b"bed\n", b"cot\n"), "'cot' where 'bed' belongs"),
    ("shards", "test_files.txt", replace(b"test1", b"test0"), r"ply_data_test0\.h5 is listed twice"),
    ("shards", "test_files.txt", replace(b"test1", b"train0"), r"ply_data_train0\.h5 is listed twice"),
    ("shards", "test_files.txt", replace(b"test1", b"test9"), "not there"),
    ("shards", "test_files.txt", pipe_instead, "missing, or not a file"),
    ("meshes", OFF, write(""), " as off: "),
    ("meshes", OFF, write("ply\n4 2 0\n"), " as off: "),
    ("meshes", OFF, write("OFF\n4\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n0 2 0\n{SQUARE}3 0 1 2\n3 0 2 3\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 0 0\n{SQUARE}"), "no faces to sample points from"),
    ("meshes", OFF, write(f"OFF\n4 2 0\n{SQUARE}3 0 1 2\n"), " as off: "),
    ("meshes", OFF, write(f"OFF\n999999999 999999999 0\n{SQUARE}"), " as off: "),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}3 0 1 4\n"), r" as off: a face has vertex (4|-1)|no faces to sample"),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}3 0 1 -1\n"), r" as off: a face has vertex (4|-1)|no faces to sample"),
    ("meshes", OFF, write(f"OFF\n4 1 0\n{SQUARE}2 0 1\n"), r" as off: a face has vertex (4|-1)|no faces to sample"),
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
    with pytest.raises(DataError, match=r"modelnet40 is not a folder or a prepared file; pc-ewa prepare modelnet40"):
        MODELNET40.load("train", tmp_path)


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
    pristine: dict[str, Path], case: tuple[str, str], edits: Edits
) -> None:
    form, name = case
    path = pristine[form] / name
    sound = path.read_bytes()
    message = None
    try:
        path.write_bytes(edited(sound, edits))
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
