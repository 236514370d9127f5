"""Read numbers and numpy arrays from a pickle without ever running it.

Python's own unpickler calls whatever the file names. This one is a small stack machine of its own that calls nothing:
it knows the instructions that lists, dicts, tuples, strings and numbers need, builds numpy arrays itself where the
pickle names their constructors (as numpy 1 and numpy 2 do), and refuses everything else. Arrays are views of the
mapped file, so a pickle of gigabytes costs memory only where it is read. Protocols 2 to 5, as `pickletools` in the
standard library documents them.
"""

import math
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc_ewa.errors import DataError

_MARK = object()
_MOST_INSTRUCTIONS = 10_000_000  # they take memory, as arrays do not; the largest published file has half a million
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
_NUMPY_CORE = re.compile(r"numpy\.(_?)core\.")  # numpy 1 and numpy 2


class _RefusedError(ValueError):
    """Something that a pickle of numbers does not have."""


class _Global(NamedTuple):
    """A function or class that a pickle names; it is never looked up, only compared."""

    module: str
    name: str


class _Pending:
    """An array or type whose state has not come yet; `keys` are its places in the memo."""

    def __init__(self, dtype: np.dtype[Any] | None) -> None:
        self.dtype, self.keys = dtype, list[int]()


def read_pickle(path: Path) -> Any:
    """Return what is pickled: lists, dicts, tuples, strings, numbers, and numpy arrays of numbers.

    Arrays are read-only views of the file. Bytes come as memoryview.

    Raises:
        DataError: a file that cannot be read, is damaged, or holds anything else; what is refused is named.
    """
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise DataError(f"{path} is missing, or no file; get a fresh copy")
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}; get a fresh copy") from error
    machine = _Machine(content)
    try:
        return machine.run()
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, StopIteration, struct.error) as error:
        defect = f"no sound pickle, damaged near byte {machine.place} of {len(content)}; get a fresh copy"
        if isinstance(error, _RefusedError):
            defect = f"refused {error}; only arrays of numbers, and lists of them, are read"
        raise DataError(f"{path}: {defect}") from error


class _Machine:
    """One run over a pickle."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.place = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0  # bytes made from text so far

    def run(self) -> Any:
        """Follow the instructions to the end and return what is left."""
        if self.number("B") != 0x80 or not 2 <= self.number("B") <= 5:
            raise _RefusedError("no pickle of protocol 2 to 5")
        for _ in range(_MOST_INSTRUCTIONS):
            code = bytes(self.take(1))
            if code in self.VALUES:
                read, kind = self.VALUES[code]
                self.stack.append(read(self, kind))
            elif code in self.CODES:
                self.CODES[code](self)
            elif code == b".":
                result = self.pop()
                if self.stack or isinstance(result, _Global | _Pending):
                    raise ValueError("something other than one value is left")
                return result
            else:
                raise _RefusedError(f"instruction {code!r} at byte {self.place - 1}")
        raise _RefusedError("a pickle of too many instructions")

    def take(self, count: int) -> memoryview:
        """Return the next bytes, without copying them."""
        part = self.content[self.place : self.place + count]
        if len(part) < count:
            raise ValueError("the file ends too early")
        self.place += count
        return part

    def data(self, size: str) -> memoryview:
        """View bytes after their length."""
        return self.take(self.number(size))

    def number(self, kind: str) -> Any:
        """Read one number in the notation of `struct`."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        values, self.stack[at:] = self.stack[at + 1 :], []
        return values

    def text(self, size: str) -> str:
        """Read a string after its length."""
        return str(self.data(size), "utf-8", "surrogatepass")

    def put(self, key: int) -> None:
        """Remember the top of the stack."""
        value = self.memo[key] = self.stack[-1]
        if isinstance(value, _Pending):
            value.keys.append(key)

    def line(self) -> str:
        """Read a name to the end of its line."""
        return str(self.take(bytes(self.content[self.place :][:200]).index(b"\n") + 1)[:-1], "utf-8")

    def named(self, module: Any, name: Any) -> None:
        """Push a name if it is one of an array's."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise _RefusedError("a global that is named by no strings")
        found = _Global(_NUMPY_CORE.sub("numpy.core.", module), name)
        if found not in self.CALLS and found != ("numpy", "ndarray"):  # the latter is only ever an argument
            raise _RefusedError(f"the global {f'{module[:80]}.{name[:80]}'!r}")
        self.stack.append(found)

    def extend(self, values: list[Any]) -> None:
        """Add to the list on top."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("no list to append to")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        """Add keys and values to the dict on top."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2 or not all(isinstance(k, str | int) for k in values[::2]):
            raise ValueError("no dict to add to, or keys that are no strings and no integers")
        target.update(zip(values[::2], values[1::2], strict=True))

    def call(self) -> None:
        """Make what a constructor would make."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or function not in self.CALLS or not isinstance(arguments, tuple):
            raise _RefusedError(
                f"a call of {function.name if isinstance(function, _Global) else 'what is no function'}"
            )
        self.stack.append(self.CALLS[function](self, *arguments))

    def build(self) -> None:
        """Complete an array or a type with its state."""
        state, target = self.pop(), self.pop()
        if not isinstance(target, _Pending) or not isinstance(state, tuple):
            raise _RefusedError("the state of an object that is no array")
        if target.dtype is None:
            _, shape, dtype, fortran, data = state
            value: Any = self.array(data, dtype, shape, "F" if fortran else "C")
        else:
            if len(state) < 5 or state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
                raise _RefusedError("an array of records")
            value = target.dtype.newbyteorder(state[1])
        self.stack.append(value)
        for key in target.keys:
            self.memo[key] = value

    def start_type(self, code: Any, *_: Any) -> _Pending:
        """Begin a type such as "f4"."""
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise _RefusedError(f"an array of type {code[:80] if isinstance(code, str) else type(code)}, no number")
        return _Pending(np.dtype(code))

    def array(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
        """View bytes as an array."""
        if not isinstance(dtype, np.dtype) or not isinstance(data, memoryview) or order not in ("C", "F"):
            raise _RefusedError("an array of objects, or of no known type")
        sizes = shape if isinstance(shape, tuple) and len(shape) <= 32 else (-1,)
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError("an array without a shape")
        if math.prod(sizes) * dtype.itemsize != len(data):
            raise _RefusedError(f"an array of shape {str(sizes)[:80]} {dtype} in {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape, order=order) if data else np.empty(shape, dtype)

    def encode(self, text: Any, encoding: Any) -> memoryview:
        """Return bytes that protocol 2 stores as text; no more of them than the file has."""
        self.encoded += len(text)
        if not isinstance(text, str) or encoding != "latin1" or self.encoded > len(self.content):
            raise _RefusedError("more text than the file has, or in an encoding that pickles do not use")
        return memoryview(text.encode("latin1"))

    CALLS: ClassVar[dict[_Global, Callable[..., Any]]] = {
        _Global("numpy.core.multiarray", "_reconstruct"): lambda m, *_: _Pending(None),  # its state says all
        _Global("numpy.core.multiarray", "scalar"): lambda m, dtype, data: m.array(data, dtype, ())[()],
        _Global("numpy.core.numeric", "_frombuffer"): array,
        _Global("numpy", "dtype"): start_type,
        _Global("_codecs", "encode"): encode,  # how protocol 2 stores bytes, and no bytes:
        _Global("builtins", "bytes"): lambda m: memoryview(b""),
        _Global("__builtin__", "bytes"): lambda m: memoryview(b""),
    }
    VALUES: ClassVar[dict[bytes, tuple[Callable[["_Machine", str], Any], str]]] = {
        b"J": (number, "<i"),
        b"K": (number, "<B"),
        b"M": (number, "<H"),
        b"G": (number, ">d"),
        b"X": (text, "<I"),
        b"\x8c": (text, "<B"),
        b"\x8d": (text, "<Q"),
        b"C": (data, "<B"),
        b"B": (data, "<I"),
        b"\x8e": (data, "<Q"),
        b"\x96": (data, "<Q"),
    }
    CODES: ClassVar[dict[bytes, Callable[["_Machine"], Any]]] = {
        b"\x95": lambda m: m.take(8),  # a frame begins: only its length
        b"(": lambda m: m.stack.append(_MARK),
        b"N": lambda m: m.stack.append(None),
        b"\x88": lambda m: m.stack.append(True),
        b"\x89": lambda m: m.stack.append(False),
        b"\x8a": lambda m: m.stack.append(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
        b"]": lambda m: m.stack.append([]),
        b"a": lambda m: m.extend([m.pop()]),
        b"e": lambda m: m.extend(m.pop_mark()),
        b"}": lambda m: m.stack.append({}),
        b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),
        b"u": lambda m: m.update(m.pop_mark()),
        b")": lambda m: m.stack.append(()),
        b"\x85": lambda m: m.stack.append((m.pop(),)),
        b"\x86": lambda m: m.stack.append((m.pop(), m.pop())[::-1]),
        b"\x87": lambda m: m.stack.append((m.pop(), m.pop(), m.pop())[::-1]),
        b"t": lambda m: m.stack.append(tuple(m.pop_mark())),
        b"q": lambda m: m.put(m.number("<B")),
        b"r": lambda m: m.put(m.number("<I")),
        b"\x94": lambda m: m.put(len(m.memo)),
        b"h": lambda m: m.stack.append(m.memo[m.number("<B")]),
        b"j": lambda m: m.stack.append(m.memo[m.number("<I")]),
        b"c": lambda m: m.named(m.line(), m.line()),
        b"\x93": lambda m: m.named(*[m.pop(), m.pop()][::-1]),
        b"R": call,
        b"b": build,
    }
