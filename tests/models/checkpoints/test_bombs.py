"""Small files that ask for much time or memory, and files that are cut or have something added."""

import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.errors import CheckpointError
from pc_ewa.models.checkpoints.read import read_checkpoint

NUMBER = b"J\xff\xff\xff\x7f"  # 2**31 - 1
BOMBS = {
    "nested lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "nested lists in each other": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "many numbers": b"\x80\x02](" + b"K\x01" * 1_000_000 + b"e.",
    "nested dicts": b"\x80\x02" + b"}K\x01" * 150_000 + b"N" + b"s" * 150_000 + b".",
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n" + NUMBER + b"\x85R.",
    "bytearray of Python 2": b"\x80\x02c__builtin__\nbytearray\n" + NUMBER + b"\x85R.",
    "bytes": b"\x80\x02cbuiltins\nbytes\n" + NUMBER + b"\x85R.",
    "long text": b"\x80\x02X\xff\xff\xff\x7f1.",
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.pt"
    torch.save({"weight": torch.arange(8.0)}, path)
    return path.read_bytes()


def with_pickle(path: Path, content: bytes) -> Path:
    """Write a sound archive of torch around a pickle."""
    torch.save({"weight": torch.arange(8.0)}, path.with_name("sound.pt"))
    with zipfile.ZipFile(path.with_name("sound.pt")) as sound, zipfile.ZipFile(path, "w") as archive:
        for record in sound.infolist():
            archive.writestr(record, content if record.filename.endswith("data.pkl") else sound.read(record))
    return path


@pytest.mark.parametrize("old", [False, True], ids=["archive", "before 1.6"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_ask_for_much_are_refused_at_once(bomb: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    if old:
        path.write_bytes(BOMBS[bomb])
    else:
        with_pickle(path, BOMBS[bomb])
    begin = time.process_time()
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert time.process_time() - begin < 2  # 0.5 s where nothing else runs; torch takes up to 15 s


def test_a_sound_file_may_hold_long_lists(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "losses": [0.5] * 50_000}, tmp_path / "a.pt")
    assert len(read_checkpoint(tmp_path / "a.pt")["losses"]) == 50_000


def test_old_files_are_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(8.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["weight"], torch.arange(8.0))


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(CheckpointError, match="not a file of torch"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_crc_of_0_is_checked_where_other_records_have_theirs(whole: bytes, tmp_path: Path) -> None:
    """Somebody who changes a weight cannot say that its record has none."""
    (tmp_path / "a.pt").write_bytes(whole)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        crc = next(record.CRC for record in archive.infolist() if record.filename.endswith("/data/0"))
    (tmp_path / "a.pt").write_bytes(whole.replace(crc.to_bytes(4, "little"), bytes(4)))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "a.pt")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_that_is_cut_or_longer_is_damaged(
    data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(data.draw(st.sampled_from([whole[:cut], whole[-cut:] if cut else b"", whole + bytes(cut + 1)])))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)
