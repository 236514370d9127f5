"""Checkpoints: whole or not at all, the newest few kept, last and best always there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pc_ewa import files
from pc_ewa.errors import CheckpointError, WriteError
from pc_ewa.models.checkpoints.write import save_atomically
from pc_ewa.train.run_folder import Checkpoints

LAST, BEST = "last.pt", "best.pt"


def content(step: int) -> dict[str, Any]:
    return {"progress": {"step": step}, "model": {"weight": torch.full((100,), float(step))}}


def step_in(path: Path) -> int:
    return torch.load(path, weights_only=True)["progress"]["step"]


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def fail_with_half_a_file(error: Exception) -> Callable[..., None]:
    def save(content: object, file: Any) -> None:
        file.write(b"half of")
        raise error

    return save


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "cannot write .*a.pt: No space left on device; free some space"),
        (RuntimeError("unexpected pos 704 vs 598"), "cannot write .*a.pt: the disk may be full; free some space"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    save_atomically(content(1), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "save", fail_with_half_a_file(error))
    with pytest.raises(WriteError, match=message):
        save_atomically(content(2), tmp_path / "a.pt")
    assert listed(tmp_path) == ["a.pt"]
    assert step_in(tmp_path / "a.pt") == 1


def test_a_really_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_new_file", lambda path: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(WriteError, match=r"cannot write .*a\.pt: .*free some space") as caught:
        save_atomically(content(1) | {"big": torch.zeros(10**6)}, tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", fail_with_half_a_file(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_atomically(content(1), tmp_path / "a.pt")
    assert listed(tmp_path) == []


def test_the_newest_are_kept_and_last_and_best_survive_pruning(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.newest() is None
    for step in range(1, 6):
        checkpoints.save(content(step), step, best=step == 2)
    assert listed(tmp_path / "c") == [BEST, LAST, "step-00000004.pt", "step-00000005.pt"]
    assert (step_in(tmp_path / "c" / BEST), step_in(tmp_path / "c" / LAST)) == (2, 5)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest["progress"]["step"] == 5


def test_steps_beyond_eight_digits_are_still_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (99_999_998, 99_999_999, 100_000_000):
        checkpoints.save(content(step), step, best=False)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest["progress"]["step"] == 100_000_000


def test_foreign_files_are_neither_read_nor_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for name in ("step-final.pt", "step-00000009.pt.bak", "mine.pt"):
        (tmp_path / name).write_text("mine")
    for step in (1, 2):
        checkpoints.save(content(step), step, best=False)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest["progress"]["step"] == 2
    assert {"step-final.pt", "step-00000009.pt.bak", "mine.pt"} < set(listed(tmp_path))


def test_checkpoints_work_where_hard_links_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    Checkpoints(tmp_path, keep=1).save(content(3), 3, best=True)
    assert listed(tmp_path) == [BEST, LAST, "step-00000003.pt"]
    assert {step_in(tmp_path / name) for name in listed(tmp_path)} == {3}


def test_what_a_kill_left_behind_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.pt.77.tmp").write_bytes(b"half a checkpoint")
    Checkpoints(tmp_path, keep=1).save(content(1), 1, best=False)
    assert listed(tmp_path) == [LAST, "step-00000001.pt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, -1])
def test_a_damaged_newest_checkpoint_is_told_in_one_line(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(content(1), 1, best=True)
    checkpoints.save(content(2), 2, best=False)
    newest = tmp_path / "step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"step-00000002\.pt is damaged.*; delete it to go on from step-00000001\.pt"
    ) as caught:
        checkpoints.newest()
    assert "\n" not in str(caught.value)
