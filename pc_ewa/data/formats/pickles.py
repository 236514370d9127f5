"""Read numbers and numpy arrays from a pickle without calling anything that it names.

`pickle.Unpickler` calls the functions that a file names. Here each of the few names that arrays need resolves to a
stand-in of this module, and every other name is refused: no function of numpy or of the standard library is called. A
first pass with `pickletools` refuses opcodes that arrays do not need, sizes beyond the file, and keys that are slow to
hash. Protocols 2 to 5 are read, with arrays pickled by numpy 1 and numpy 2.
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

# Each opcode may take memory. The largest published file has half a million of them.
_MOST_INSTRUCTIONS = 10_000_000
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
_NAMES = """
    PROTO FRAME STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE MARK
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_INSTRUCTIONS = {code.code.encode("latin-1"): code for code in pickletools.opcodes if code.name in _NAMES.split()}
# Types of dict keys. Nested tuples that share their items would take exponential time to hash.
_KEYS = ("str", "int")


class _RefusedError(Exception):
    """Content that a pickle of numbers does not have."""


def read_pickle(path: Path) -> Any:
    """Return the pickled value: lists, dicts, tuples, strings, bytes, numbers, and numpy arrays of numbers.

    Arrays are views of the pickled bytes, so the file is in memory once.

    Raises:
        DataError: a file that cannot be read, is damaged, or contains anything else, which the message names.
    """
    # Opening a named pipe would block until somebody writes to it.
    if not os.path.isfile(path):
        raise DataError(f"{path} is missing, or not a file; get a fresh copy")
    try:
        with path.open("rb") as file:
            # A read beyond the end of a mapping returns the rest of it, whereas `file.read(n)` allocates the n bytes
            # that the pickle claims.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # mmap raises ValueError for an empty file.
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; get a fresh copy") from error
    with content:
        try:
            _check(content)
            content.seek(0)
            return _resolve(_Unpickler(content, len(content)).load(), {})
        except _RefusedError as error:
            raise DataError(f"{path}: refused {error}; only arrays of numbers, and lists of them, are read") from error
        # Damaged opcodes make the unpickler and the stand-ins raise almost anything.
        except Exception as error:
            defect = f"not a sound pickle, damaged near byte {content.tell()} of {len(content)}"
            raise DataError(f"{path}: {defect}; get a fresh copy") from error


def _check(content: mmap.mmap) -> None:
    """Simulate the types on the stack, opcode by opcode, and refuse what would cost time or memory."""
    if content[:1] != b"\x80" or not 2 <= content[1] <= 5:
        raise _RefusedError("a file that is not a pickle of protocol 2 to 5")
    stack: list[str] = []
    marks: list[int] = []
    memo: dict[int, str] = {}
    for count in range(_MOST_INSTRUCTIONS):
        # pickletools.genops does the same, but decodes the argument of an opcode before the opcode can be refused.
        code = content.read(1)
        if code not in _INSTRUCTIONS:
            raise _RefusedError(f"instruction {code!r} at byte {content.tell() - 1}")
        opcode = _INSTRUCTIONS[code]
        name: str = opcode.name
        argument: Any = opcode.arg.reader(cast("IO[bytes]", content)) if opcode.arg else None
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(memo) if name == "MEMOIZE" else argument
            # The C unpickler allocates a memo of `key` entries, so one opcode could claim gigabytes.
            if key > count:
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
    """Pop the operands of an opcode from the stack. Return them without the object that the opcode changes."""
    before = [kind.name for kind in opcode.stack_before]
    taken: list[str] = []
    # Operands down to the topmost mark, then the fixed ones below it.
    if "stackslice" in before:
        mark = marks.pop()
        taken, before = stack[mark + 1 :], before[: before.index("mark")]
        del stack[mark:]
    if len(before) > len(stack) or "mark" in stack[len(stack) - len(before) :]:
        raise ValueError(f"too little on the stack for {opcode.name}")
    fixed = stack[len(stack) - len(before) :]
    del stack[len(stack) - len(before) :]
    return taken or fixed[1:]


class _Function:
    """A stand-in for a function. `__slots__` leaves no attributes that a file could set."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("the state of an object that is not an array")


class _Type:
    """A stand-in for `numpy.dtype`, complete after BUILD has set its state."""

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
    """A stand-in for `numpy.core.multiarray._reconstruct`. Its arguments are placeholders; its state has the array."""

    __slots__ = ("value",)

    def __init__(self, *_: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    """Return a view of bytes as an array."""
    # `type(size) is int` refuses bool, which `isinstance` would accept as an integer.
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
    # Not callable: it is only an argument of _reconstruct.
    ("numpy", "ndarray"): object(),
    # Protocol 2 stores b"" as a call of bytes().
    ("builtins", "bytes"): _Function(_no_bytes),
    ("__builtin__", "bytes"): _Function(_no_bytes),
}


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, restricted to the stand-ins."""

    def __init__(self, file: mmap.mmap, size: int) -> None:
        super().__init__(file)
        # Budget of encoded bytes: a file could encode one long memoised text again and again.
        self.left = size

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core to numpy._core.
        key = module.replace("numpy._core.", "numpy.core."), name
        # Protocol 2 stores bytes as a call of _codecs.encode(text, "latin1").
        if key == ("_codecs", "encode"):
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
    """Replace stand-ins by their arrays. `done` maps the id of each visited container to it and its result."""
    if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
        return value
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if id(value) in done:
        return done[id(value)][1]
    if type(value) is tuple:
        done[id(value)] = (value, tuple([_resolve(entry, done) for entry in value]))
    elif type(value) is list:
        # Registered before its entries are resolved, because a list may contain itself. The stored reference keeps
        # the object alive, so that its id is not reused.
        done[id(value)] = (value, value)
        value[:] = [_resolve(entry, done) for entry in value]
    elif type(value) is dict:
        done[id(value)] = (value, value)
        for key, entry in value.items():
            value[key] = _resolve(entry, done)
    else:
        raise _RefusedError("something that is neither a value nor an array")
    return done[id(value)][1]
