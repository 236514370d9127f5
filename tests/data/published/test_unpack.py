"""Archives, sound, hostile and damaged."""

import contextlib
import gzip
import io
import os
import random
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_ewa.data.published.unpack import unpack
from pc_ewa.errors import DataError

FILES = {"set/list.txt": b"a\nb\n", "set/a/1.bin": bytes(range(256)) * 9, "set/b/leer.txt": b"", "set/b/\xe9.txt": b"x"}
SUFFIXES = ("zip", "tar", "tar.gz", "tgz")


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


def assert_refused(archive: Path, folder: Path, *parts: str, **limits: int) -> None:
    before = contents(folder.parent)
    with pytest.raises(DataError) as caught:
        unpack(archive, folder, **limits)
    message = str(caught.value)
    assert all(part in message for part in (str(archive), *parts)), message
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


def test_what_systems_add_is_left_out(tmp_path: Path) -> None:
    junk = {"__MACOSX/set/._a": b"", "set/._a": b"", "set/.DS_Store": b"", "./": b""}
    for suffix in ("zip", "tar"):
        archive = make(tmp_path / f"a.{suffix}", junk | FILES)
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
@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/x", "//x", "C:/x", "c:x", "..\\x", "\\x", "\\\\host\\x", "a\nb", "a\x1b[31m", "a/.."],
)
def test_names_that_lead_outside(tmp_path: Path, suffix: str, name: str) -> None:
    assert_refused(
        make(tmp_path / f"a.{suffix}", {"ok": b"", name: b"x"}), tmp_path / "to", "has a name that leads out"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a" * 300,), ("/".join("a" * 3000),)])
def test_names_that_clash_or_are_too_long(tmp_path: Path, suffix: str, names: tuple[str, ...]) -> None:
    archive = tmp_path / f"a.{suffix}"
    with contextlib.ExitStack() as stack:
        if suffix == "zip":
            zipped = stack.enter_context(zipfile.ZipFile(archive, "w"))
            stack.enter_context(pytest.warns(UserWarning, match="Duplicate")) if names == ("a", "a") else None
            for name in names:
                zipped.writestr(name, b"x")
        else:
            packed = stack.enter_context(tarfile.open(archive, "w:gz" if "gz" in suffix else "w"))
            for name in names:
                add(packed, name, b"x")
    assert_refused(archive, tmp_path / "to", f"at member '{names[-1]}'")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, "ok", b"1")
        add(tar, "bad", type=kind, linkname="ok")
    assert_refused(archive, tmp_path / "to", "member 'bad' is a link, a device or a sparse file")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_zip(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "a.zip"
    info = zipfile.ZipInfo("bad")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    assert_refused(archive, tmp_path / "to", "member 'bad' is a link or a device")


def test_encrypted_members(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"a": b"1"})
    damaged = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        damaged[damaged.index(signature) + offset] |= 1
    archive.write_bytes(damaged)
    assert_refused(archive, tmp_path / "to", "member 'a' is encrypted")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_much(tmp_path: Path, suffix: str) -> None:
    bomb = make(tmp_path / f"a.{suffix}", {"a": bytes(2_000_000), "b": bytes(2_000_000)})
    assert_refused(bomb, tmp_path / "to", "member 'b' unpacks to more than 3,999,999 bytes", max_bytes=3_999_999)
    assert_refused(bomb, tmp_path / "to", "member 'b' is one more than the 1 members allowed", max_members=1)
    assert len(contents(unpack(bomb, tmp_path / "to", max_bytes=4_000_000, max_members=2))) == 2


def header(name: str, size: int, kind: bytes = b"0", **fields: Any) -> bytes:
    """A tar header with any size, also below zero, and a checksum that is right."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"0", b"5", b"L", b"K", b"x", b"g", b"S", b"7", b"Z"])
@pytest.mark.parametrize("size", [-512, -(2**62), 2**21, 2**40, 2**62])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_sizes_that_lie(tmp_path: Path, kind: bytes, size: int, suffix: str) -> None:
    body = header("ok", 1) + b"1".ljust(512) + header("bad", size, kind) + b"x".ljust(1024) + bytes(10240)
    (tmp_path / f"a.{suffix}").write_bytes(body if suffix == "tar" else gzip.compress(body))
    assert_refused(tmp_path / f"a.{suffix}", tmp_path / "to")


def test_headers_without_end(tmp_path: Path) -> None:
    nested = header("x", 5, b"L") + b"name".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(nested * 5000 + bytes(1024))
    assert_refused(tmp_path / "a.tar", tmp_path / "to")
    pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=aaaaa\n"
    sparse = header("x", len(pax), b"x") + pax.ljust(512, b"\0") + header("s", 512) + b"9999\n" * 100
    (tmp_path / "b.tar").write_bytes(sparse)
    assert_refused(tmp_path / "b.tar", tmp_path / "to")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path, suffix: str) -> None:
    body = make(tmp_path / "a.tar").read_bytes()
    at = body.index(b"set/b/leer.txt")
    for damaged in (body[:at] + b"X" + body[at + 1 :], body[:at], body[: at + 100]):
        (tmp_path / f"b.{suffix}").write_bytes(damaged if suffix == "tar" else gzip.compress(damaged))
        assert_refused(tmp_path / f"b.{suffix}", tmp_path / "to")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_at_any_length(tmp_path: Path, suffix: str) -> None:
    body = make(tmp_path / f"a.{suffix}").read_bytes()
    rest = random.Random(0).sample(range(len(body)), 60)
    # A tar ends with blocks of zeros, of which one suffices.
    end = len(body.rstrip(b"\0")) + 511 if suffix == "tar" else len(body)
    for length in [0, 1, *(count for count in rest if count < end)]:
        (tmp_path / f"a.{suffix}").write_bytes(body[:length])
        assert_refused(tmp_path / f"a.{suffix}", tmp_path / "to")


def test_a_damaged_directory_is_not_taken_for_a_short_one(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip")
    body = bytearray(archive.read_bytes())
    body[body.index(b"PK\1\2") + 33] = 1  # a comment so long that it swallows the other entries
    archive.write_bytes(body)
    with zipfile.ZipFile(archive) as readable:
        assert len(readable.infolist()) < len(FILES)
    assert_refused(archive, tmp_path / "to", "has a damaged directory")


def test_more_members_than_fit_the_old_header(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(2**16 + 1):
            archive.writestr(f"._{i}", b"")
        archive.writestr("a/b", b"")
    assert contents(unpack(tmp_path / "a.zip", tmp_path / "to")) == {"b": b""}


def test_the_checksum_of_gzip_is_read(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.tar.gz")
    body = bytearray(archive.read_bytes())
    body[-6] ^= 1
    archive.write_bytes(body)
    assert_refused(archive, tmp_path / "to", "CRC")


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"\n<!DOCTYPE html><html>sign in</html>")
    assert_refused(tmp_path / "a.zip", tmp_path / "to", ", but a web page")
    (tmp_path / "a.zip").write_bytes(b"\x89HDF")
    assert_refused(tmp_path / "a.zip", tmp_path / "to", "neither zip, tar nor tar.gz")
    assert_refused(tmp_path / "none.zip", tmp_path / "to", "No such file")
    for suffix in SUFFIXES:
        assert_refused(make(tmp_path / f"b.{suffix}", {}), tmp_path / "to", "there is nothing in it")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.zip: .*see that .*/file is writable"):
        unpack(make(tmp_path / "a.zip"), tmp_path / "file")


def sound_or_refused(archive: Path, to: Path, accept: Callable[[dict[str, bytes]], bool]) -> None:
    try:
        unpack(archive, to, max_bytes=10**7)
    except DataError as error:
        assert str(archive) in str(error)  # noqa: PT017, both outcomes are fine
        assert not any(to.iterdir())
    else:
        found = {name.partition("/")[2]: content for name, content in contents(to).items()}
        assert accept(found), found
    finally:
        shutil.rmtree(to, ignore_errors=True)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corruption(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    archive = make(tmp_path / f"a.{suffix}")
    body = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    archive.write_bytes(body)
    plain = {name.partition("/")[2]: content for name, content in FILES.items()}
    # The contents of a tar have no checksum.
    accept = (lambda found: len(found) <= len(plain)) if suffix == "tar" else (lambda found: found == plain)
    sound_or_refused(archive, tmp_path / "to", accept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "outside"]


@pytest.mark.parametrize("suffix", ["tar", "zip"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupt_headers_with_sound_checksums(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    archive = make(tmp_path / f"a.{suffix}", {"set/a": b"1" * 600, "set/b": b"2" * 600})
    body = bytearray(archive.read_bytes())
    begin = body.index(b"PK\1\2") if suffix == "zip" else 1536
    for _ in range(data.draw(st.integers(1, 4))):
        body[begin + data.draw(st.integers(0, min(511, len(body) - begin - 1)))] = data.draw(st.integers(0, 255))
    if suffix == "tar":
        head = body[1536:2048]
        head[148:156] = b" " * 8
        body[1536 + 148 : 1536 + 156] = f"{sum(head):06o}\0 ".encode()
    archive.write_bytes(body)
    sound_or_refused(archive, tmp_path / "to", lambda found: len(found) <= 2)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
