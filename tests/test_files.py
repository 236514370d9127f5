"""Files are whole or not there; folders are locked; links that somebody planted are not followed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pc_ewa import files
from pc_ewa.errors import ConfigError, WriteError
from pc_ewa.files import append_text, lock_folder, write_text, write_whole


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new" + "\ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match="pipe"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_what_is_written_is_flushed_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File first, then the rename, then the folder: a power cut leaves the old file or the new one."""
    order = []
    fsync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        order.append("folder" if os.path.isdir(f"/dev/fd/{number}") else "file")
        fsync(number)

    def renamed(path: Path, to: Path) -> Path:
        order.append("rename")
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_text(tmp_path / "a.txt", "text")
    assert order == ["file", "rename", "folder"]


def test_a_full_disk_is_one_line_and_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(files, "_new_file", lambda path: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(WriteError, match=r"^cannot write .*a\.txt: No space left") as caught:
        write_text(tmp_path / "a.txt", "new")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(WriteError, match=r"^cannot write /dev/full: No space left"):
        append_text(Path("/dev/full"), "line\n")


def test_links_in_the_place_of_our_files_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.txt", f".a.txt.{os.getpid()}.tmp", ".lock"):
        (folder / name).symlink_to(victim)
    write_text(folder / "a.txt", "ours")
    assert (folder / "a.txt").read_text() == "ours"
    assert not (folder / "a.txt").is_symlink()
    with pytest.raises(WriteError, match="cannot write"), lock_folder(folder):
        pass
    (folder / "log.txt").symlink_to(victim)
    with pytest.raises(WriteError, match=r"cannot write .*log\.txt"):
        append_text(folder / "log.txt", "ours")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(("before", "after"), [("", "new\n"), ("a\n", "a\nnew\n"), ("torn", "torn\nnew\n")])
def test_a_line_is_appended_as_a_line(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(before)
    append_text(file, "new\n")
    assert file.read_text() == after


def test_an_error_of_the_writer_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def write(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", write)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_locked_for_one_at_a_time_and_free_afterwards(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(ConfigError, match="in use by somebody"),
        lock_folder(tmp_path, "somebody"),
    ):
        pass
    with lock_folder(tmp_path):
        pass


def test_a_lock_that_was_deleted_under_its_holder_is_made_again(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        (tmp_path / ".lock").unlink()
        with lock_folder(tmp_path), pytest.raises(ConfigError), lock_folder(tmp_path):
            pass


def test_a_lock_lives_as_long_as_a_process_that_inherits_it(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ConfigError), lock_folder(tmp_path):
        pass
    child.communicate(b"\n")
    with lock_folder(tmp_path):
        pass


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*file"), lock_folder(tmp_path / "file" / "run"):
        pass


def test_advice_fits_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space helps where the disk is full, and nowhere else."""

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "_new_file", refused)
    with pytest.raises(WriteError, match=r"Permission denied; choose another output$"):
        write_text(tmp_path / "a", "")
