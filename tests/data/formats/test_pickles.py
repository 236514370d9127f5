"""Pickles of arrays are read as Python reads them, and nothing in them is ever run."""

import os
import pickle
import struct
import time
from collections import OrderedDict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import EDITS, Edits, attempt, edited
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.data.formats.pickles import read_pickle
from pc_ewa.errors import DataError

CLOUD = np.arange(24, dtype=np.float32).reshape(4, 6)
CONTENTS: dict[str, Any] = {
    "cache": [[CLOUD, CLOUD + 1], [np.array([3], np.int32), np.array([39], np.int32)]],
    "fold": {"train": [(CLOUD, 0, np.int32(7))], "test": [(CLOUD, 1, np.int64(-8))]},
    "plain": {
        "a": [1, -1, 255, 256, 65536, -(2**31), 2**40, 0.5, True, False, None, "é\ud800", (), {}, (1,), (1, 2, 3)]
    },
    "long": ["x" * 300, list(range(3000)), {i: str(i) for i in range(3000)}, (1, 2, 3, 4, 5)],
    "orders": [np.asfortranarray(CLOUD), CLOUD.astype(">f4"), CLOUD[::2], CLOUD.T[1:], np.float64(0.1)],
    "types": [np.zeros(2, code) for code in ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]],
    "empty": [np.zeros((0, 3), np.float32), np.zeros((5, 0)), np.array(1.5)],
    "shared": [CLOUD, CLOUD, [CLOUD.dtype.type(1)]],
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file.dat"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", CONTENTS)
def test_reads_what_python_reads(tmp_path: Path, name: str, protocol: int) -> None:
    assert equal(CONTENTS[name], read_pickle(write(tmp_path, pickle.dumps(CONTENTS[name], protocol))))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_1_and_2_name_their_constructors_differently(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(CONTENTS["cache"], protocol)
    new, old = (b"numpy._core.", b"numpy.core.") if b"_core" in content else (b"numpy.core.", b"numpy._core.")
    for module in (b"multiarray", b"numeric"):  # protocol 4 and 5 count the letters
        content = content.replace(bytes([len(new + module)]) + new + module, bytes([len(old + module)]) + old + module)
    content = content.replace(new, old)
    if protocol >= 4:  # the length of the frame
        content = content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]
    assert old in content
    assert equal(CONTENTS["cache"], read_pickle(write(tmp_path, content)))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_are_views_of_the_pickled_bytes(tmp_path: Path, protocol: int) -> None:
    array = read_pickle(write(tmp_path, pickle.dumps(CLOUD, protocol)))
    assert not array.flags.owndata


class Command:
    """What a hostile file holds."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class Thing:
    pass


REFUSED: list[tuple[str, Any, str]] = [
    ("command", Command(), "system'"),
    ("in a list", [[CLOUD], [Command()]], "system'"),
    ("eval", eval, "eval'"),
    ("class", Thing(), r"Thing|copyreg|copy_reg|instruction b.\\x81."),
    ("objects", np.array([None, "a"], object), "type O8"),
    ("records", np.zeros(2, [("x", "f4")]), "type V4"),
    ("texts", np.array(["abc"]), "type U3"),
    ("times", np.zeros(2, "M8[s]"), "type M8"),
    ("complex", np.zeros(2, "c16"), "type c16"),
    ("set", {1, 2}, "builtin.*set'|instruction"),
    ("date", date(2020, 1, 1), "datetime.date"),
    ("ordered", OrderedDict(a=1), "OrderedDict"),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("value", "refused"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_everything_else_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, refused: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, pickle.dumps(value, protocol))
    with pytest.raises(DataError, match=f"file.dat: refused .*({refused}).*; only arrays"):
        read_pickle(path)
    assert not (tmp_path / "executed").exists()


def array_of(shape: bytes, data: bytes = b"C\x04abcd") -> bytes:
    """A pickled float32 array by hand."""
    kind = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4K\x00K\x01tR"
    kind += b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return b"\x80\x03" + start + b"(K\x01" + shape + kind + b"\x89" + data + b"tb."


LAUGHS = b"\x80\x04]\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(200))
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "text": b"x,y,z\n" * 99,
    "protocol 0": pickle.dumps([1, 2], 0),
    "protocol 9": b"\x80\x09N.",
    "no end": b"\x80\x03N",
    "two results": b"\x80\x03NN.",
    "no result": b"\x80\x03.",
    "only a mark": b"\x80\x03(.",
    "huge text": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "huge bytes": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
    "huge memo": b"\x80\x04h\xff.",
    "huge array": array_of(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "huge integer": array_of(b"\x8a\xff" + b"\x7f" * 255 + b"\x85"),
    "huge and empty": array_of(b"K\x00\x8a\x08" + b"\x7f" * 8 + b"\x86", b"C\x00"),
    "negative shape": array_of(b"J\xff\xff\xff\xff\x85"),
    "shape of text": array_of(b"X\x01\x00\x00\x00a\x85"),
    "list for bytes": array_of(b"K\x01\x85", b"]"),
    "more arguments": b"\x80\x03cnumpy\ndtype\n(tR.",
    "list as text": b"\x80\x03c_codecs\nencode\n]X\x06\x00\x00\x00latin1\x86R.",
    "laughing key": LAUGHS + b"}h\xc8Ns.",
    "laughing keys": LAUGHS + b"}(h\xc8Nu.",
    "key from a call": b"\x80\x03}cbuiltins\nbytes\n)RNs.",
    "memo without end": b"\x80\x03Nr\xff\xff\xff\x7f.",
    "frame without end": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
    "function": b"\x80\x03cnumpy\ndtype\n.",
    "type": array_of(b"K\x01\x85").replace(b"\x89C\x04abcdtb", b"t"),
    "state of a function": b"\x80\x03cnumpy\ndtype\n}X\x04\x00\x00\x00callNsb.",
    "state of a function, by slots": b"\x80\x03cnumpy\ndtype\nN}X\x04\x00\x00\x00callNs\x86b.",
    "array without state": b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.",
    "laughing name": LAUGHS + b"hch\xc8\x93.",
    "laughing call": LAUGHS + b"h\xc8)R.",
    "laughing shape": array_of(LAUGHS[2:] + b"h\xc8"),
    "encoded again and again": b"\x80\x03c_codecs\nencode\nq\x00X\x10\x00\x00\x00"
    + b"a" * 16
    + b"X\x06\x00\x00\x00latin1\x86q\x01R"
    + b"h\x00h\x01R" * 40
    + b"t.",
    "line without end": b"\x80\x03c" + b"a" * 1000,
    "no unicode": b"\x80\x03X\x02\x00\x00\x00\xff\xfe.",
    "to a tuple": b"\x80\x03)K\x01a.",
    "unhashable": b"\x80\x03}]Ns.",
    "array as key": pickle.dumps({(1, 2): CLOUD}, 4),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles_are_refused_in_one_line_and_in_no_time(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    began = time.process_time()
    with pytest.raises(DataError, match=r"file\.dat: ") as caught:
        read_pickle(path)
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_the_array_by_hand_is_sound(tmp_path: Path) -> None:
    """So that what is refused above is refused for its defect."""
    assert read_pickle(write(tmp_path, array_of(b"K\x01\x85"))).shape == (1,)


def test_too_many_instructions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pc_ewa.data.formats.pickles._MOST_INSTRUCTIONS", 1000)
    path = write(tmp_path, b"\x80\x03" + b"N" * 2000 + b".")
    with pytest.raises(DataError, match="too many instructions"):
        read_pickle(path)


def test_what_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"\x80\x03N.")
    for missing in (tmp_path, tmp_path / "none.dat"):
        with pytest.raises(DataError, match=f"{missing} is missing, or not a file; get a fresh copy"):
            read_pickle(missing)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=r"cannot read .*file\.dat: .*Permission denied"):
        read_pickle(path)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(CONTENTS)), protocol=st.integers(2, 5), edits=EDITS)
def test_a_damaged_file_is_refused_or_read_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, name: str, protocol: int, edits: Edits
) -> None:
    path = write(tmp_path_factory.getbasetemp(), edited(pickle.dumps(CONTENTS[name], protocol), edits))
    result = attempt(lambda: read_pickle(path))
    assert not isinstance(result, DataError) or str(path) in str(result)


def test_nested_without_end(tmp_path: Path) -> None:
    path = write(tmp_path, b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(DataError, match=r"file\.dat: "):
        read_pickle(path)


def test_a_list_in_itself(tmp_path: Path) -> None:
    looped: list[object] = [CLOUD]
    looped.append((looped, CLOUD))
    read = read_pickle(write(tmp_path, pickle.dumps(looped, 4)))
    assert read[1][0] is read
    assert np.array_equal(read[1][1], CLOUD)
