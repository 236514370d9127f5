"""Archives, sound, hostile and damaged."""

import io
import os
import random
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_ewa.data.published.unpack import unpack
from pc_ewa.errors import DataError

FILES = {"set/list.txt": b"a\nb\n", "set/a/1.bin": bytes(range(256)) * 9, "set/b/leer.txt": b"", "set/b/\xe9.txt": b"x"}
CHECKS_TAR = hasattr(tarfile, "data_filter")
SUFFIXES = ("zip", "tar", "tar.gz", "tgz") if CHECKS_TAR else ("zip",)


def make(path: Path, files: dict[str, bytes] = FILES) -> Path:
    """Write an archive of the format that the name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(archive: Path, folder: Path, *facts: str) -> None:
    before = contents(folder.parent)
    with pytest.raises(DataError) as caught:
        unpack(archive, folder)
    message = str(caught.value)
    assert all(fact in message for fact in (str(archive), *facts)), message
    assert "\n" not in message
    assert contents(folder.parent) == before
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_of_one_folder_becomes_that_folder(tmp_path: Path, suffix: str) -> None:
    archive = make(tmp_path / f"x.{suffix}")
    assert unpack(archive, tmp_path / "to") == tmp_path / "to" / "set"
    assert contents(tmp_path / "to") == FILES
    assert os.listdir(tmp_path / "to") == ["set"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "to" / "set").stat().st_mode) == 0o777 & ~umask


def test_a_tar_file_that_cannot_be_checked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    assert_refused(make(tmp_path / "x.tar"), tmp_path / "to", "3.11.4")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_other_archive_becomes_a_folder_of_its_name(tmp_path: Path, suffix: str) -> None:
    archive = make(tmp_path / f"my.set.{suffix}", {"./a/1": b"1", "2": b"2"})
    assert unpack(archive, tmp_path / "to") == tmp_path / "to" / "my.set"
    assert contents(tmp_path / "to" / "my.set") == {"a/1": b"1", "2": b"2"}
    make(archive, {"single": b"1"})
    assert contents(unpack(archive, tmp_path / "other")) == {"single": b"1"}


def test_the_format_is_seen_from_the_contents(tmp_path: Path) -> None:
    make(tmp_path / "a.zip").rename(tmp_path / "a.tar.gz")
    assert contents(unpack(tmp_path / "a.tar.gz", tmp_path / "to").parent) == FILES


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_folder_that_macos_adds_does_not_count(tmp_path: Path, suffix: str) -> None:
    archive = make(tmp_path / f"a.{suffix}", {"__MACOSX/set/._a": b"", "._set": b""} | FILES)
    assert unpack(archive, tmp_path / suffix).name == "set"
    assert contents(tmp_path / suffix) == FILES


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip")
    unpack(archive, tmp_path)
    (tmp_path / "set" / "list.txt").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.zip: it unpacks to .*/set, which is there already; move that away"):
        unpack(archive, tmp_path)
    assert (tmp_path / "set" / "list.txt").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "set"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "//x", "..\\x", "\\\\host\\x", "../../../../x"])
def test_no_name_leads_outside(tmp_path: Path, suffix: str, name: str) -> None:
    """Such an archive is refused, or its member lands inside."""
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    archive = make(home / f"a.{suffix}", {"ok": b"", name: b"x"})
    try:
        unpack(archive, home / "to")
    except DataError as error:
        assert str(archive) in str(error)  # noqa: PT017, both outcomes are fine
    outside = [path for path in contents(tmp_path) if not path.startswith(("a/b/to/", f"a/b/{archive.name}"))]
    assert outside == []
    assert not Path("/x").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["a" * 300, "/".join("a" * 3000)])
def test_names_that_are_too_long(tmp_path: Path, suffix: str, name: str) -> None:
    assert_refused(make(tmp_path / f"a.{suffix}", {"ok": b"", name: b"x"}), tmp_path / "to")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_that_lead_outside_and_devices_in_tar(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, "ok", b"1")
        add(tar, "bad", type=kind, linkname="../../../secret")
    assert_refused(archive, tmp_path / "to", "bad" if CHECKS_TAR else "3.11.4")


def test_a_link_in_zip_is_a_file(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    info = zipfile.ZipInfo("bad")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    assert not (unpack(archive, tmp_path / "to") / "bad").is_symlink()


def test_encrypted_members(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"a": b"1"})
    damaged = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        damaged[damaged.index(signature) + offset] |= 1
    archive.write_bytes(damaged)
    assert_refused(archive, tmp_path / "to", "encrypted")


def test_truncated_at_any_length(tmp_path: Path) -> None:
    """A tar may look whole: only its digest, which `download` checks before, gives it away."""
    body = make(tmp_path / "a.zip").read_bytes()
    for length in [0, 1, *random.Random(0).sample(range(len(body)), 60)]:
        (tmp_path / "a.zip").write_bytes(body[:length])
        assert_refused(tmp_path / "a.zip", tmp_path / "to")


def test_the_checksum_of_zip_is_read(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"a": bytes(2000), "b": b"sound"})
    body = bytearray(archive.read_bytes())
    body[body.index(b"a", 30) + 3] ^= 1
    archive.write_bytes(body)
    assert_refused(archive, tmp_path / "to")


def test_no_archive_at_all(tmp_path: Path) -> None:
    for content in (b"\n<!DOCTYPE html><html>sign in</html>", b"\x89HDF", b""):
        (tmp_path / "a.zip").write_bytes(content)
        assert_refused(tmp_path / "a.zip", tmp_path / "to")
    assert_refused(tmp_path / "none.zip", tmp_path / "to", "No such file" if CHECKS_TAR else "3.11.4")
    for suffix in SUFFIXES:
        assert_refused(make(tmp_path / f"b.{suffix}", {}), tmp_path / "to", "it is empty")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.zip: .*check that .*/file is writable"):
        unpack(make(tmp_path / "a.zip"), tmp_path / "file")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corruption(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """One line or a folder, nothing beside it, nothing half done."""
    archive, to = make(tmp_path / f"a.{suffix}"), tmp_path / "to"
    body = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    archive.write_bytes(body)
    try:
        made = unpack(archive, to)
    except DataError as error:
        assert (str(archive) in str(error), "\n" in str(error)) == (True, False)  # noqa: PT017, both outcomes are fine
        assert not to.exists() or not any(to.iterdir())
    else:
        assert list(to.iterdir()) == [made]
    finally:
        shutil.rmtree(to, ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
