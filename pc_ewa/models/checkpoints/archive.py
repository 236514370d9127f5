"""Checks of the zip archive that `torch.save` writes, before torch reads it. torch itself does not check the CRCs."""

import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO

from torch import Tensor

from pc_ewa.errors import CheckpointError
from pc_ewa.models.checkpoints.pickles import check_old_file, check_pickle

_MAGIC, _END = b"PK\x03\x04", b"PK\x05\x06"
_CHUNK = 1 << 18  # bytes; small enough to stay in the cache of a core
_MOST_RECORDS = 20_000


def check_archive(path: Path) -> None:
    """Check that every record of a file of `torch.save` is intact, and that its pickle has a plausible size.

    Files in the format of torch before 1.6 are not archives and have no CRC. Only their pickles are checked.

    Raises:
        CheckpointError: a CRC does not match, bytes follow the end, there are too many records, they are compressed
            (torch never compresses, and a few bytes could expand to any size) or claim more bytes than the file has, or
            a pickle has more steps than weights need.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            check_old_file(path)
            return
        try:
            _check_end(path, file)
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                _check_sizes(path, records)
                _check_crcs(archive, file, records)
                for record in records:
                    if record.filename.endswith("/data.pkl"):
                        _go_to(archive, file, record)
                        check_pickle(path, BytesIO(file.read(record.file_size)))
        except CheckpointError:
            raise
        except Exception as error:  # zipfile raises many kinds of errors for damaged archives
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{path} is damaged: {reason}") from None


def check_tensors(path: Path, content: object) -> None:
    """Check that the tensors in a file do not claim more memory than it has bytes.

    Raises:
        CheckpointError: they claim more.
    """
    # A few bytes can describe a huge tensor of stride 0, which repeats one number. The first operation on it would
    # take all memory.
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content, set()))
    # The factor 8 allows for weights under several names, as in the official part segmentation files.
    if claimed > 8 * path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} is damaged: its tensors claim {claimed:,} bytes, more than the file can hold")


def _check_sizes(path: Path, records: list[zipfile.ZipInfo]) -> None:
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} has a compressed record, {packed[0][:60]!r}: torch.save writes none; not read")
    if len(records) > _MOST_RECORDS:
        raise CheckpointError(f"{path} has {len(records):,} records; a checkpoint has one for each tensor; not read")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: its records claim more bytes than it has")


def _check_end(path: Path, file: IO[bytes]) -> None:
    """Check that the file ends with the end record of the archive. torch writes no comment after it."""
    file.seek(-min(len(_END) + 18, path.stat().st_size), 2)
    if not file.read().startswith(_END):
        raise CheckpointError(f"{path} is damaged: it ends early, or has bytes after its end")


def _check_crcs(archive: zipfile.ZipFile, file: IO[bytes], records: list[zipfile.ZipInfo]) -> None:
    """Compare the CRC of every record."""
    # torch.serialization.set_crc32_options(False) leaves the CRCs out, and all are 0 then.
    unchecked = not any(record.CRC for record in records)
    chunk = memoryview(bytearray(_CHUNK))
    for record in records:
        _go_to(archive, file, record)
        if unchecked:
            continue
        crc, left = 0, record.file_size
        while left:  # read into one buffer: zipfile copies all data twice
            read = file.readinto(chunk[: min(left, _CHUNK)])  # type: ignore[attr-defined]  # IO[bytes] lacks it
            if not read:
                raise CheckpointError(f"{archive.filename} is damaged: it ends early")
            crc, left = zlib.crc32(chunk[:read], crc), left - read
        if crc != record.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {record.filename!r}")


def _go_to(archive: zipfile.ZipFile, file: IO[bytes], record: zipfile.ZipInfo) -> None:
    """Move the file position to the first byte of a record."""
    with archive.open(record):  # zipfile compares the header of the record with the directory here
        pass
    # The data follow a header of 30 bytes, a name and an extra field, whose lengths are at offset 26. The directory has
    # a separate extra field, so that its length cannot be used.
    file.seek(record.header_offset + 26)
    lengths = file.read(4)  # of the name and of the extra field
    file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)


def _tensors(content: object, seen: set[int]) -> list[Tensor]:
    """List the tensors in nested dicts, lists and tuples, once each."""
    # A stack and a set of the objects seen, not recursion: a pickle can nest deeply, and can contain itself.
    found: list[Tensor] = []
    stack = [content]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            stack += value
    return found
