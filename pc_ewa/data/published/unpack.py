"""Archives unpacked with distrust: nothing outside the folder, no links, no bombs, all of it or nothing."""

import gzip
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, NoReturn

from pc_ewa.errors import DataError

_CHUNK = 2**20

# What zipfile, tarfile, gzip and the file system raise; RuntimeError: a password, recursion, an unknown method.
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, zlib.error, struct.error,
    RuntimeError, ValueError, LookupError, ArithmeticError, AttributeError, MemoryError,
)  # fmt: skip


def unpack(archive: Path, folder: Path, *, max_members: int = 2_000_000, max_bytes: int = 2**38) -> Path:
    """Unpack a zip, tar or tar.gz file; its format is seen from its contents.

    All goes to a temporary folder, renamed when it is whole: an archive of one folder to `folder/<that folder>`, any
    other one to `folder/<its name without suffix>`. Permissions are not taken over, nor what macOS adds.

    Args:
        archive: the file.
        folder: where to, made when missing.
        max_members: refuse more files and folders.
        max_bytes: refuse more, counted as they are written, whatever the archive says.

    Returns:
        The folder that was made.

    Raises:
        DataError: a damaged archive; a link, a device, a member that is encrypted, there twice or leads outside; too
            much of it; a folder that is there already; one line naming archive and member.
    """
    writer = _Writer(archive, max_members, max_bytes)
    with _one_line_errors(archive, folder, writer):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
        try:
            writer.root = temporary / "content"  # with the usual permissions, which mkdtemp does not give
            writer.root.mkdir()
            form = _format(archive)
            _unzip(archive, writer) if form == "zip" else _untar(archive, writer, compressed=form == "tar.gz")
            return _place(archive, writer.root, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """Takes members one by one, and refuses what is not safe."""

    def __init__(self, archive: Path, max_members: int, max_bytes: int) -> None:
        self.root = Path()
        self.archive, self.max_members, self.max_bytes = archive, max_members, max_bytes
        self.name, self.members, self.written = "", 0, 0

    def refuse(self, defect: str) -> NoReturn:
        member = f" member {self.name!r}" if self.name else ""
        raise DataError(f"{self.archive}:{member} {defect}; get a fresh copy, from a source you trust")

    def too_large(self) -> NoReturn:
        self.refuse(f"unpacks to more than {self.max_bytes:,} bytes in all, which are allowed")

    def member(self, name: str) -> Path | None:
        """Begin a member; return where it goes, or None for one to be left out."""
        self.name = name
        self.members += 1
        if self.members > self.max_members:
            self.refuse(f"is one more than the {self.max_members:,} members allowed")
        plain = name.replace("\\", "/")
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        if plain.startswith("/") or ".." in parts or re.match("[A-Za-z]:", plain) or not plain.isprintable():
            self.refuse("has a name that leads outside or is no file name")
        if not parts or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._"):
            return None
        return self.root.joinpath(*parts)

    def file(self, path: Path, chunks: Iterator[bytes], size: int) -> None:
        """Write a member; `size` is what the archive says of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        count = 0
        with path.open("xb") as file:  # "x": refuses a name that is there, also in other letters where these are equal
            for chunk in chunks:
                count += len(chunk)
                self.written += len(chunk)
                if self.written > self.max_bytes:
                    self.too_large()
                file.write(chunk)
        if count != size:
            self.refuse(f"has {count:,} bytes, and {size:,} by its header")


def _format(archive: Path) -> str:
    with archive.open("rb") as file:
        begin = file.read(512)
    if begin.startswith(b"PK"):
        return "zip"
    if begin.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if begin[257:262] == b"ustar" or archive.suffix == ".tar":
        return "tar"
    page = ", but a web page" if b"<html" in begin.lower() or b"<!doc" in begin.lower() else ""
    raise DataError(f"{archive}: neither zip, tar nor tar.gz{page}: it begins {begin[:20]!r}; get a fresh copy")


def _unzip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        if len(file.infolist()) not in _promised(archive):
            writer.refuse(f"has a damaged directory: {len(file.infolist()):,} members can be read of more")
        for info in file.infolist():
            path = writer.member(info.filename)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                writer.refuse("is a link or a device")
            if info.flag_bits & 1:
                writer.refuse("is encrypted")
            if path is None:
                continue
            if info.filename.endswith(("/", "\\")):
                path.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(info) as stream:
                writer.file(path, iter(lambda: stream.read(_CHUNK), b""), info.file_size)


def _promised(archive: Path) -> range:
    """Read how many members a zip has: zipfile takes a damaged entry for the last one, and says nothing."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 2**17))
        tail = file.read()
    end = tail.rindex(b"PK\5\6")
    long = tail.rfind(b"PK\6\6", 0, end)
    (count,) = struct.unpack_from("<H", tail, end + 10)
    if count == 2**16 - 1 and long >= 0:
        (count,) = struct.unpack_from("<Q", tail, long + 32)
        return range(count, count + 1)
    return range(count, 2**32, 2**16)  # some programs write the low bits of a large count


def _untar(archive: Path, writer: _Writer, compressed: bool) -> None:
    with closing(gzip.open(archive) if compressed else archive.open("rb")) as file:
        _untar_stream(_Forward(file, writer), writer)


def _untar_stream(stream: "_Forward", writer: _Writer) -> None:
    with tarfile.TarFile(fileobj=stream, mode="r") as tar:  # type: ignore[arg-type]  # it has what is used
        while (member := tar.next()) is not None:
            path = writer.member(member.name)
            if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
                writer.refuse("is a link, a device or a sparse file")
            if path is None:
                continue
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            stream.seek(member.offset_data)
            writer.file(path, stream.chunks(member.size), member.size)
    writer.name = ""
    if stream.last != bytes(512):  # tarfile takes a header it cannot read for the end, and says nothing
        writer.refuse(f"is damaged at byte {stream.end:,} of its contents")
    while stream.read_or_end():  # to where the checksum of gzip is
        pass


class _Forward:
    """What tarfile reads from, so that sizes in damaged headers can do no harm.

    It goes forward only, as going back in gzip begins anew; a read is never larger than a sound header needs, nor
    beyond the end; what comes is counted.
    """

    def __init__(self, file: IO[bytes] | gzip.GzipFile, writer: _Writer) -> None:
        self.file, self.writer = file, writer
        self.position = self.end = 0
        self.last = b""  # ends at `end`; tarfile steps back by a byte
        self.limit = writer.max_bytes + 2048 * writer.max_members + _CHUNK

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        if position < self.end - len(self.last):
            self.writer.refuse("is damaged: goes back to an earlier one")
        self.position = position
        return position

    def read(self, count: int) -> bytes:
        if not 0 < count <= _CHUNK:
            self.writer.refuse(f"is followed by a header of {count:,} bytes")
        while self.end < self.position:
            self._next(min(_CHUNK, self.position - self.end))
        back = self.last[len(self.last) - (self.end - self.position) :][:count]
        data = back + (self._next(count - len(back)) if count > len(back) else b"")
        self.position += len(data)
        return data

    def chunks(self, size: int) -> Iterator[bytes]:
        while size > 0:
            chunk = self.read(min(size, _CHUNK))
            size -= len(chunk)
            yield chunk

    def read_or_end(self, count: int = _CHUNK) -> bytes:
        data = self.file.read(count)
        self.end += len(data)
        if self.end > self.limit:
            self.writer.too_large()
        return data

    def _next(self, count: int) -> bytes:
        self.last = self.read_or_end(count)
        if not self.last:
            raise EOFError("it ends too early")
        return self.last


def _place(archive: Path, content: Path, folder: Path) -> Path:
    found = list(content.iterdir())
    if not found:
        raise DataError(f"{archive}: there is nothing in it; get a fresh copy")
    name = re.sub(r"(\.zip|\.tgz|\.tar|\.tar\.gz)$", "", archive.name, flags=re.IGNORECASE)
    made, target = content, folder / name
    if len(found) == 1 and found[0].is_dir():
        made, target = found[0], folder / found[0].name
    if target.exists() or target.is_symlink():
        raise DataError(f"{archive}: it unpacks to {target}, which is there already; move that away")
    made.rename(target)
    return target


@contextmanager
def _one_line_errors(archive: Path, folder: Path, writer: _Writer) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        member = f" at member {writer.name!r}" if writer.name else ""
        text = " ".join(str(error).split()) or type(error).__name__
        remedy = f"get a fresh copy, and see that {folder} is writable and has space"
        raise DataError(f"cannot unpack {archive}{member}: {text}; {remedy}") from error
