from pathlib import Path

import numpy as np
import pytest

from pc_ewa.data import MissingSplitError, load_dataset, write_hdf5
from pc_ewa.errors import ConfigError, DataError


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
    with pytest.raises(DataError, match="does not exist; check the option path") as caught:
        load_dataset("hdf5", "val", path=tmp_path / "none.h5")
    assert not isinstance(caught.value, MissingSplitError)


def test_bundled_file_not_found_names_the_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sweethome3d_1024\.h5 does not exist; .*data\.root"):
        load_dataset("sweethome3d", "train", root=tmp_path)


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
