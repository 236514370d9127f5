"""Read numbers and numpy arrays from a pickle without running anything that it names.

`pickle.Unpickler` calls what a file names. Here every name leads to a stand-in of ours, and any other name is refused:
nothing of numpy or of the standard library is called. A first pass over the instructions, with `pickletools`, refuses
those that arrays do not need, sizes beyond the file, and keys that would be slow to hash. Protocols 2 to 5; arrays
pickled by numpy 1 and numpy 2.
"""

import math
import mmap
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pc_ewa.data.formats.text_files import one_line
from pc_ewa.errors import DataError

_MOST_INSTRUCTIONS = 10_000_000  # each may take memory; the largest published file has half a million
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
_NAMES = """
    PROTO FRAME STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE MARK
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_INSTRUCTIONS = {code.code.encode("latin-1"): code for code in pickletools.opcodes if code.name in _NAMES.split()}
_KEYS = ("str", "int")  # of dicts: a tuple of tuples of ... could take for ever to hash


class _RefusedError(Exception):
    """Something that a pickle of numbers does not have."""


def read_pickle(path: Path) -> Any:
    """Return what is pickled: lists, dicts, tuples, strings, bytes, numbers, and numpy arrays of numbers.

    Arrays are views of the pickled bytes, so all of the file is in memory once.

    Raises:
        DataError: a file that cannot be read, is damaged, or holds anything else; what is refused is named.
    """
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise DataError(f"{path} is missing, or no file; get a fresh copy")
    try:
        with path.open("rb") as file:
            # Mapped: reading beyond its end returns what there is, and never asks for memory that a file claims.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise DataError(f"cannot read {path}: {one_line(error)}; get a fresh copy") from error
    with content:
        try:
            _check(content)
            content.seek(0)
            return _resolve(_Unpickler(content, len(content)).load(), {})
        except _RefusedError as error:
            raise DataError(f"{path}: refused {error}; only arrays of numbers, and lists of them, are read") from error
        except Exception as error:  # damaged instructions make the unpickler, and our stand-ins, raise almost anything
            defect = f"no sound pickle, damaged near byte {content.tell()} of {len(content)}"
            raise DataError(f"{path}: {defect}; get a fresh copy") from error


def _check(content: mmap.mmap) -> None:
    """Follow the types on the stack from instruction to instruction, and refuse what would cost time or memory."""
    if content[:1] != b"\x80" or not 2 <= content[1] <= 5:
        raise _RefusedError("a file that is not a pickle of protocol 2 to 5")
    stack: list[str] = []
    marks: list[int] = []
    memo: dict[int, str] = {}
    for count in range(_MOST_INSTRUCTIONS):
        # pickletools.genops does the same, but decodes what follows an instruction before it can be refused.
        code = content.read(1)
        if code not in _INSTRUCTIONS:
            raise _RefusedError(f"instruction {code!r} at byte {content.tell() - 1}")
        opcode = _INSTRUCTIONS[code]
        name: str = opcode.name
        argument: Any = opcode.arg.reader(cast("IO[bytes]", content)) if opcode.arg else None
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(memo) if name == "MEMOIZE" else argument
            if key > count:  # the unpickler makes room for as many entries
                raise ValueError(f"entry {key} of the memo before there are as many")
            memo[key] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "STOP":
            if len(stack) != 1:
                raise ValueError("something other than one value is left")
            return
        else:
            taken = _take(stack, marks, opcode)
            if name in ("SETITEM", "SETITEMS") and not set(taken[::2]) <= set(_KEYS):
                raise _RefusedError("a dict with keys that are not strings or integers")
            if name == "MARK":
                marks.append(len(stack))
            stack += [kind.name for kind in opcode.stack_after]
    raise _RefusedError("a pickle of too many instructions")


def _take(stack: list[str], marks: list[int], opcode: pickletools.OpcodeInfo) -> list[str]:
    """Take from the stack what an instruction takes, and return it without the object that is changed."""
    before = [kind.name for kind in opcode.stack_before]
    taken: list[str] = []
    if "stackslice" in before:  # all down to the mark, then what is below it
        mark = marks.pop()
        taken, before = stack[mark + 1 :], before[: before.index("mark")]
        del stack[mark:]
    if len(before) > len(stack) or "mark" in stack[len(stack) - len(before) :]:
        raise ValueError(f"too little on the stack for {opcode.name}")
    fixed = stack[len(stack) - len(before) :]
    del stack[len(stack) - len(before) :]
    return taken or fixed[1:]


class _Function:
    """Stands in for a function; it has no attributes that a file could set."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("the state of an object that is not an array")


class _Type:
    """Stands in for `numpy.dtype`; complete when its state has come."""

    __slots__ = ("code", "dtype")

    def __init__(self, code: Any, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            shown = code[:80] if isinstance(code, str) else type(code).__name__
            raise _RefusedError(f"an array of type {shown}, which is not a number")
        self.code = code
        self.dtype: np.dtype[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        order, records = state[1], state[2:5]
        if order not in ("<", ">", "=", "|") or records != (None, None, None):
            raise _RefusedError("an array of records")
        self.dtype = np.dtype(self.code).newbyteorder(order)


class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct`, whose arguments say nothing; its state says all."""

    __slots__ = ("value",)

    def __init__(self, *_: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    """View bytes as an array."""
    dtype = kind.dtype if isinstance(kind, _Type) else None
    if dtype is None or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise _RefusedError("an array of objects, or of no known type")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array without a shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise _RefusedError(f"an array of shape {str(shape)[:80]} {dtype} in {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order=order) if data else np.empty(shape, dtype)


def _from_buffer(*arguments: Any) -> _Array:
    made = _Array()
    made.value = _array(*arguments)
    return made


def _scalar(kind: Any, data: Any) -> _Array:
    made = _Array()
    made.value = _array(data, kind, ())[()]
    return made


def _no_bytes() -> bytes:
    return b""


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Function(_Array),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Function(_from_buffer),
    ("numpy", "dtype"): _Function(_Type),
    ("numpy", "ndarray"): object(),  # only ever an argument of _reconstruct
    ("builtins", "bytes"): _Function(_no_bytes),  # how protocol 2 stores b""
    ("__builtin__", "bytes"): _Function(_no_bytes),
}


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, in a world where only our stand-ins exist."""

    def __init__(self, file: mmap.mmap, size: int) -> None:
        super().__init__(file)
        self.left = size  # bytes that text may still become: the same text could be encoded again and again

    def find_class(self, module: str, name: str) -> Any:
        key = module.replace("numpy._core.", "numpy.core."), name  # numpy 2 and numpy 1
        if key == ("_codecs", "encode"):  # how protocol 2 stores bytes
            return _Function(self._encode)
        if key not in _STAND_INS:
            raise _RefusedError(f"the global {f'{module[:80]}.{name[:80]}'!r}")
        return _STAND_INS[key]

    def _encode(self, text: Any, encoding: Any) -> bytes:
        self.left -= len(text)
        if not isinstance(text, str) or encoding != "latin1" or self.left < 0:
            raise _RefusedError("more text than the file has, or in an encoding that pickles do not use")
        return text.encode("latin1")


def _resolve(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Put arrays in the place of their stand-ins; `done` has, by id, every container met and what became of it."""
    if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
        return value
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if id(value) in done:
        return done[id(value)][1]
    if type(value) is tuple:
        done[id(value)] = (value, tuple([_resolve(entry, done) for entry in value]))
    elif type(value) is list:
        done[id(value)] = (value, value)  # before its entries, as it may hold itself
        value[:] = [_resolve(entry, done) for entry in value]
    elif type(value) is dict:
        done[id(value)] = (value, value)
        for key, entry in value.items():
            value[key] = _resolve(entry, done)
    else:
        raise _RefusedError("something that is neither a value nor an array")
    return done[id(value)][1]
