"""The zip archive that `torch.save` writes, checked before torch reads it: torch itself checks no CRC."""

import zipfile
from pathlib import Path

from torch import Tensor

from pc_ewa.errors import CheckpointError

_MAGIC = b"PK\x03\x04"
_CHUNK = 1 << 20  # bytes


def check_archive(path: Path) -> None:
    """Check that every record of a file of `torch.save` is stored as it was written.

    Files in the format of torch before 1.6 are no archives, and have nothing to check.

    Raises:
        CheckpointError: a CRC that does not match, records that are compressed (torch never compresses, and a few
            bytes could expand to any size), or that claim more bytes than the file has.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_sizes(path, records)
            for record in records:
                _check_crc(archive, record)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is damaged: {reason}") from None


def check_tensors(path: Path, content: object) -> None:
    """Check that the tensors in a file do not claim more memory than it has bytes.

    A few bytes can describe a huge tensor, one that repeats a number, and the first operation on it takes all memory.

    Raises:
        CheckpointError: they do.
    """
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content, set()))
    # A weight may be there under several names, as in the official part segmentation files.
    if claimed > 8 * path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} is damaged: its tensors claim {claimed:,} bytes, more than the file can hold")


def _check_sizes(path: Path, records: list[zipfile.ZipInfo]) -> None:
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} has a compressed record, {packed[0][:60]!r}: torch.save writes none; not read")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: its records claim more bytes than it has")


def _check_crc(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Read a record to its end, where zipfile compares the CRC; torch can be told to write 0 for none."""
    with archive.open(record) as file:
        if record.CRC != 0:
            while file.read(_CHUNK):
                pass


def _tensors(content: object, seen: set[int]) -> list[Tensor]:
    """List the tensors in nested dicts, lists and tuples, once each."""
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
