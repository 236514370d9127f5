"""ScanObjectNN as published: read in place, prepared, and every defect in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_ewa.data import Clouds
from pc_ewa.data.convert import convert
from pc_ewa.data.published import scanobjectnn
from pc_ewa.data.published.scanobjectnn import CLASS_NAMES, VARIANTS, VariantName
from pc_ewa.errors import ConfigError, DataError

TRAIN, TEST = 17, 15
FUZZ = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def arrays_of(seed: int, count: int) -> dict[str, np.ndarray]:
    """Shapes with labels 14, 13, ... and ever more background."""
    random = np.random.RandomState(seed)
    points = random.uniform(-2, 2, (count, 2048, 3)).astype(np.float32)
    background = random.uniform(0, 1, (count, 2048)) < np.linspace(0, 0.8, count)[:, None]
    mask = np.where(background, -1, random.randint(1, 9, (count, 2048)))
    return {"data": points, "label": 14 - np.arange(count) % 15, "mask": mask}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip", compression_opts=4)


def generate(base: Path, variant: str = "pb_t50_rs") -> Path:
    folder, file, _, _ = VARIANTS[variant]
    write(base / folder / f"training_{file}", arrays_of(0, TRAIN))
    write(base / folder / f"test_{file}", arrays_of(1, TEST))
    return base


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants that are published with a few shapes."""
    for name, variant in VARIANTS.items():
        monkeypatch.setitem(VARIANTS, name, variant._replace(counts={"train": TRAIN, "test": TEST}))


@pytest.fixture
def folder(tmp_path: Path, small: None) -> Path:
    """The hardest variant; may be damaged."""
    return generate(tmp_path / "scanobjectnn")


def file_of(folder: Path) -> Path:
    return folder / "main_split" / "training_objectdataset_augmentedrot_scale75.h5"


@pytest.mark.parametrize(
    ("variant", "folder", "file", "train", "test"),
    [
        ("obj_bg", "main_split", "objectdataset.h5", 2309, 581),
        ("obj_only", "main_split_nobg", "objectdataset.h5", 2309, 581),
        ("pb_t50_rs", "main_split", "objectdataset_augmentedrot_scale75.h5", 11416, 2882),
    ],
)
def test_files_and_counts_are_the_published_ones(
    tmp_path: Path, variant: VariantName, folder: str, file: str, train: int, test: int
) -> None:
    for prefix, count in (("training", train), ("test", test)):
        (tmp_path / folder).mkdir(exist_ok=True)
        with h5py.File(tmp_path / folder / f"{prefix}_{file}", "w") as stored:
            # Chunks that are never written take no space, and read as the fill value.
            stored.create_dataset("data", (count, 2048, 3), "f4", chunks=(1, 2048, 3), fillvalue=0.5)
            stored["label"] = np.arange(count) % 15
    source = scanobjectnn.source(tmp_path, variant=variant)
    assert [item.split for item in source.items].count("train") == train
    assert len(source.items) == train + test
    assert source.items[-1].name == f"test_{test - 1:05d}"
    sample = source.items[-1].read()
    assert (sample.points == 0.5).all()
    assert sample.points.shape == (2048, 3)


def test_labels_are_in_the_published_order() -> None:
    assert len(CLASS_NAMES) == 15
    assert (
        " ".join(CLASS_NAMES) == "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"
    )


@pytest.mark.parametrize("variant", ["obj_bg", "obj_only", "pb_t50_rs"])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("place", ["", "h5_files", "ScanObjectNN"])
def test_in_place_and_prepared_are_the_same(
    small: None, tmp_path: Path, variant: VariantName, background: bool, place: str
) -> None:
    published, root = tmp_path / "scanobjectnn", tmp_path / "prepared"
    generate(published / place, variant)
    source = scanobjectnn.source(published, variant=variant, background=background)
    convert(source, root / "scanobjectnn" / scanobjectnn.file_name(variant=variant, background=background))
    for i, (split, count) in enumerate((("train", TRAIN), ("test", TEST))):
        plain = scanobjectnn.load(split, tmp_path, variant=variant, background=background)
        prepared = scanobjectnn.load(split, root, variant=variant, background=background)
        assert plain.shape_names == prepared.shape_names
        assert plain.class_names == prepared.class_names == CLASS_NAMES
        assert (len(plain), len(prepared), plain.num_points, plain.up_axis) == (count, count, 2048, "y")
        index = range(count)
        torch.testing.assert_close(plain.batch(index)[0], prepared.batch(index)[0], atol=4 / 32767, rtol=0)
        assert plain.labels.tolist() == prepared.labels.tolist() == [14 - n % 15 for n in index]
        if background or variant == "obj_only":
            np.testing.assert_array_equal(plain.points, arrays_of(i, count)["data"])


def test_without_background_only_and_all_of_the_object_is_left(folder: Path) -> None:
    clouds = scanobjectnn.load("train", folder.parent, background=False)
    arrays = arrays_of(0, TRAIN)
    for i, (points, mask) in enumerate(zip(arrays["data"], arrays["mask"], strict=True)):
        assert set(map(tuple, clouds.points[i].tolist())) == set(map(tuple, points[mask != -1].tolist()))
    again = scanobjectnn.load("train", folder.parent, background=False)
    assert torch.equal(clouds.points, again.points)


def test_more_shapes_than_are_read_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanobjectnn, "_BLOCK", 5)
    source = scanobjectnn.source(folder)
    points = arrays_of(0, TRAIN)["data"]
    for i in (16, 0, 4, 5, 15, 0):
        np.testing.assert_array_equal(source.items[i].read().points, points[i])


def test_names_of_prepared_files() -> None:
    assert scanobjectnn.file_name() == "scanobjectnn_pb_t50_rs.h5"
    assert scanobjectnn.file_name(variant="obj_bg", background=False) == "scanobjectnn_obj_bg_nobackground.h5"
    assert scanobjectnn.file_name(variant="obj_only", background=False) == "scanobjectnn_obj_only.h5"


def test_the_card_says_the_same(repository: Path) -> None:
    card = (repository / "datasets" / "scanobjectnn" / "README.md").read_text()
    for label, name in enumerate(CLASS_NAMES):
        assert f"| {label} | {name} |" in card
    for name, variant in VARIANTS.items():
        file = f"{variant.folder}/{{training,test}}_{variant.file}"
        assert f"| {name} | `{file}` | {variant.counts['train']} | {variant.counts['test']} |" in card


def test_unknown_variants_are_wrong_options(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown variant 'obj_bgg'; did you mean 'obj_bg'"):
        scanobjectnn.load("train", folder.parent, variant="obj_bgg")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown variant"):
        scanobjectnn.source(folder, variant="all")  # type: ignore[arg-type]


Change = Callable[[dict[str, np.ndarray]], object]


def put(key: str, value: object) -> Change:
    return lambda arrays: arrays.update({key: value})


def at(key: str, index: object, value: object) -> Change:
    return lambda arrays: arrays[key].__setitem__(index, value)


DEFECTS: list[tuple[str, Change, str]] = [
    ("no data", lambda a: a.pop("data"), r"no dataset data \(found: label, mask\)"),
    ("no label", lambda a: a.pop("label"), "no dataset label"),
    ("no mask", lambda a: a.pop("mask"), "no dataset mask"),
    ("integers", put("data", np.zeros((TRAIN, 2048, 3), int)), r"data is \(17, 2048, 3\) int64; expected"),
    ("fewer points", put("data", np.zeros((TRAIN, 1024, 3), "f4")), r"expected \(shapes, 2048, 3\) numbers"),
    ("zero points", put("data", np.zeros((TRAIN, 0, 3), "f4")), r"data is \(17, 0, 3\)"),
    ("normals", put("data", np.zeros((TRAIN, 2048, 6), "f4")), r"data is \(17, 2048, 6\)"),
    ("fewer shapes", put("data", np.zeros((3, 2048, 3), "f4")), "data has 3 shapes, the published file 17; .* hdf5"),
    ("no shapes", put("data", np.zeros((0, 2048, 3), "f4")), "data has 0 shapes, the published file 17"),
    ("fewer labels", put("label", np.zeros(16, int)), "label has 16 shapes, the published file 17"),
    ("label columns", put("label", np.zeros((17, 1), int)), r"label is \(17, 1\) int64; expected \(shapes\) numbers"),
    ("label text", put("label", np.array([b"chair"] * 17)), r"label is \(17,\) \|S5"),
    ("label 15", at("label", 3, 15), "label of shape 3 is 15; allowed: 0 to 14"),
    ("label -1", at("label", 3, -1), "label of shape 3 is -1"),
    ("label NaN", put("label", np.full(17, np.nan)), "label of shape 0 is nan"),
    ("mask shape", put("mask", np.zeros((17, 2047), int)), r"mask is \(17, 2047\) int64"),
    ("mask unsigned", put("mask", np.zeros((17, 2048), np.uint8)), r"mask is \(17, 2048\) uint8"),
    ("mask NaN", put("mask", np.full((17, 2048), np.nan)), "mask of shape 0 has nan"),
    ("background only", at("mask", 5, -1), "shape 5 has only points of the background"),
    ("NaN", at("data", (2, 7, 1), np.nan), "nan among the coordinates"),
    ("infinity", at("data", (2, 7, 1), -np.inf), "-inf among the coordinates"),
]


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_damaged_contents(folder: Path, change: Change, message: str) -> None:
    arrays = arrays_of(0, TRAIN)
    arrays["mask"][:, 7] = 1  # the defects in the points are not in the background
    change(arrays)
    path = file_of(folder)
    path.unlink()
    with h5py.File(path, "w") as file:
        file.update(arrays)
    with pytest.raises(DataError, match=message) as caught:
        scanobjectnn.load("train", folder.parent, background=False)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def group(file: h5py.File) -> None:
    file.create_group("data")


def huge(file: h5py.File) -> None:
    file.create_dataset("data", (2**40, 2048, 3), "f4", chunks=(1, 2048, 3))


def huge_chunks(file: h5py.File) -> None:
    file.create_dataset("data", (TRAIN, 2048, 3), "f4", chunks=(2**14, 2048, 3), maxshape=(None, 2048, 3))


def objects(file: h5py.File) -> None:
    file.create_dataset("data", (TRAIN, 2048, 3), h5py.vlen_dtype(np.float32))


def dangling(file: h5py.File) -> None:
    file["data"] = h5py.ExternalLink("nowhere.h5", "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (group, "there is no dataset data"),
        (huge, "data has 1099511627776 shapes, the published file 17"),
        (huge_chunks, "larger than memory may be"),
        (objects, "data is .* object"),
        (dangling, "there is no dataset data|cannot read"),
    ],
)
def test_contents_that_are_no_array(folder: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(file_of(folder), "a") as file:
        del file["data"]
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        scanobjectnn.source(folder)
    assert str(file_of(folder)) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"garbage" * 99, None])
def test_no_hdf5_file(folder: Path, content: bytes | None) -> None:
    path = file_of(folder)
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(DataError, match=r"cannot read .*training_objectdataset_augmentedrot_scale75\.h5: .*fresh copy"):
        scanobjectnn.source(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"main_split_nobg/training_objectdataset.h5 is missing.*unpack all of h5_files"
    ):
        scanobjectnn.load("train", tmp_path, variant="obj_only")
    file_of(folder).unlink()
    for replace in (lambda p: None, Path.mkdir, lambda p: p.symlink_to("nowhere"), os.mkfifo):
        replace(file_of(folder))
        with pytest.raises(DataError, match=r"scale75\.h5 is missing, or not a file"):
            scanobjectnn.load("test", tmp_path)
        if file_of(folder).is_dir():
            file_of(folder).rmdir()
        else:
            file_of(folder).unlink(missing_ok=True)
    write(tmp_path / "moved.h5", arrays_of(0, TRAIN))
    file_of(folder).symlink_to(tmp_path / "moved.h5")
    assert len(scanobjectnn.load("train", tmp_path)) == TRAIN


def test_a_file_that_goes_away_or_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scanobjectnn.source(folder)
    file_of(folder).unlink()
    with pytest.raises(DataError, match=r"cannot read .*scale75.h5"):
        source.clouds("train")

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(DataError, match=r"cannot read .*test_.*: .*Permission denied"):
        source.clouds("test")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pc-ewa prepare scanobjectnn"):
        scanobjectnn.load("train", tmp_path)
    (tmp_path / "scanobjectnn").mkdir()
    with pytest.raises(DataError, match=r"holds no scanobjectnn in any published format"):
        scanobjectnn.load("train", tmp_path)


@FUZZ
@given(
    st.lists(
        st.tuples(st.sampled_from(["flip", "insert", "delete", "cut"]), st.floats(0, 1), st.integers(1, 255)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([4096, 10**9]),
)
def test_corrupted_files(folder: Path, changes: list[tuple[str, float, int]], within: int) -> None:
    """Damage where the structure of the file is, or anywhere."""
    path = file_of(folder)
    content = path.read_bytes()
    data = bytearray(content)
    for kind, where, value in changes:
        at = int(where * min(within, len(data)))
        if kind == "flip" and at < len(data):
            data[at] ^= value
        elif kind == "insert":
            data[at:at] = bytes([value])
        else:
            del data[at : at + 1 if kind == "delete" else None]
    path.write_bytes(data)
    try:
        clouds: Clouds | DataError = scanobjectnn.load("train", folder.parent, background=False)
    except DataError as error:
        clouds = error
    path.write_bytes(content)
    if isinstance(clouds, Clouds):
        assert clouds.points.shape == (TRAIN, 2048, 3)
        assert clouds.points.isfinite().all()
        assert clouds.labels.max() <= 14
    else:
        assert str(path) in str(clouds)
