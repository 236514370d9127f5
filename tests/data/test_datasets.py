import gzip
import hashlib
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pc_ewa.config import load_experiment
from pc_ewa.data import DATASETS, Clouds, Dataset, MissingSplitError, load_dataset, read_hdf5, write_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.dataset import Archive
from pc_ewa.data.prepare import get_source, state, table_of_datasets
from pc_ewa.data.source import Item, Sample, Source
from pc_ewa.errors import ConfigError, DataError

HOME = Path(__file__).parents[2]
CONFIG = HOME / "configs" / "quickstart.yaml"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.h5"
    write_hdf5(
        path,
        np.zeros((4, 2, 3)),
        [0, 0, 0, 0],
        ["a"],
        up_axis="z",
        split=[0, 0, 1, 2],
        split_names=["train", "val", "test", "extra"],
    )
    return path


def test_the_users_own_file_loads_by_path(own: Path) -> None:
    clouds = load_dataset("hdf5", "train", path=str(own))
    assert (len(clouds), clouds.name) == (2, "own")


def test_a_relative_path_is_taken_from_the_working_folder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert len(load_dataset("hdf5", "test", root="elsewhere", path="own.h5")) == 1


def test_a_split_without_shapes_is_told_from_a_missing_file(own: Path, tmp_path: Path) -> None:
    assert len(load_dataset("hdf5", "val", path=own)) == 1
    for absent in ("extra", "other"):
        with pytest.raises(MissingSplitError):
            load_dataset("hdf5", absent, path=own)
    with pytest.raises(DataError, match="does not exist; check data") as caught:
        load_dataset("hdf5", "val", path=tmp_path / "none.h5")
    assert not isinstance(caught.value, MissingSplitError)


def test_bundled_file_not_found_names_the_root(tmp_path: Path) -> None:
    (tmp_path / "sweethome3d").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/sweethome3d/.*does not exist; "):
        load_dataset("sweethome3d", "train", root=tmp_path)


def test_bundled_file_is_found_without_a_root(tmp_path: Path) -> None:
    assert len(load_dataset("sweethome3d", "test", root=tmp_path)) == 154


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sweethom3d", {}, r"unknown dataset 'sweethom3d'; did you mean 'sweethome3d'\?"),
        ("zzz", {}, "unknown dataset 'zzz'; choose from files, hdf5, modelnet10, "),
        (
            "hdf5",
            {"paht": "a.h5"},
            r"'dataset hdf5.path' is missing; set it; unknown key 'dataset hdf5.paht'; did you mean",
        ),
        ("hdf5", {}, "'dataset hdf5.path' is missing"),
        ("sweethome3d", {"path": "a.h5"}, r"unknown key 'dataset sweethome3d.path'; there are none"),
    ],
)
def test_wrong_names_and_options_say_what_there_is(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(name, "train", **options)


def test_a_folder_is_no_hdf5_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; a folder of shapes is loaded with name: files, not hdf5"):
        load_dataset("hdf5", "train", path=str(tmp_path))


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_records(dataset: Dataset) -> None:
    assert DATASETS[dataset.name] is dataset
    assert all(text and "\n" not in text for text in (dataset.title, dataset.licence, dataset.manual))
    assert dataset.own_files or dataset.terms
    for archive in dataset.archives:
        assert all(url.startswith(("https://", "http://")) and url.endswith(f"/{archive.file}") for url in archive.urls)
        has_sha256 = any(digest.startswith("sha256:") for digest in archive.digests)
        assert has_sha256 or all(url.startswith("https://") for url in archive.urls)
        for digest in archive.digests:
            kind, value = digest.split(":")
            assert len(value) == hashlib.new(kind).digest_size * 2
            assert int(value, 16)
    if dataset.source is None:
        with pytest.raises(DataError, match="nothing to prepare"):
            dataset.open(Path("."))
    else:
        assert dataset.prepared(Path("a"), **dataset.source_arguments({})).name.startswith(dataset.name)
        with pytest.raises(ConfigError, match="no_such_option"):
            dataset.source_arguments({"no_such_option": 1})


@pytest.mark.parametrize("dataset", [d for d in DATASETS.values() if not d.own_files], ids=lambda dataset: dataset.name)
def test_every_published_dataset_has_a_card(dataset: Dataset) -> None:
    card = HOME / "datasets" / dataset.name / "README.md"
    assert dataset.name in card.read_text("utf-8")


def test_a_new_dataset_is_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its line in DATASETS it loads by name, resolves in a config, is listed and is prepared."""

    def source(folder: Path, *, size: Literal["all", "half"] = "all") -> Source:
        items = [
            Item(name, label, split, partial(Sample, np.eye(3, dtype=np.float32) * (label + 1)))
            for split in ("train", "test")
            for label, name in enumerate(("a", "b"))
        ]
        return Source("dice", items, ("cat", "dog"), "z", "CC0")

    def load(split: str, root: Path, *, size: Literal["all", "half"] = "all") -> Clouds:
        return source(root / "dice", size=size).clouds(split)

    dice = Dataset("dice", load, source, title="Dice", licence="CC0", terms="none", manual="throw them")
    monkeypatch.setitem(DATASETS, dice.name, dice)

    assert len(load_dataset("dice", "train", size="half")) == 2
    data = load_experiment(CONFIG, ["data={name: dice}"]).data
    assert (data.name, data.arguments["size"]) == ("dice", "all")
    with pytest.raises(ConfigError, match=r"data.siez.*'size'"):
        load_experiment(CONFIG, ["data={name: dice, siez: half}"])
    assert table_of_datasets(tmp_path)[-1] == ["dice", "by hand", "CC0", "absent"]
    path = dice.prepared(tmp_path / "dice")
    convert(get_source(dice, tmp_path / "dice", dice.source_arguments({}), consent=lambda archive: None), path)
    assert len(read_hdf5(path, "test", name="dice")) == 2
    assert state(dice, tmp_path / "dice") == "ready: dice.h5"


def test_an_archive_needs_a_digest() -> None:
    with pytest.raises(ValueError, match=r"dice: dice\.zip has no digest"):
        Dataset("dice", load_dataset, archives=(Archive("dice.zip", ("https://example.org/dice.zip",)),))


@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_a_damaged_archive_is_never_unpacked(tmp_path: Path, place: float) -> None:
    """Not even one that was placed by hand: a tar that is cut short would look whole."""
    body = bytearray(gzip.compress(bytes(10240)))
    digest = f"md5:{hashlib.md5(body).hexdigest()}"
    body[int(place * len(body))] ^= 1
    (tmp_path / "dice.tar.gz").write_bytes(body)

    def source(folder: Path) -> Source:
        raise DataError(f"{folder} holds nothing")

    dice = Dataset("dice", load_dataset, source, archives=(Archive("dice.tar.gz", (), digests=(digest,)),))
    with pytest.raises(DataError, match=rf"dice\.tar\.gz.*{digest}"):
        get_source(dice, tmp_path, {}, consent=lambda archive: None)
    assert [path.name for path in tmp_path.iterdir()] == ["dice.tar.gz"]
