"""LAS and LAZ files of laser scanners, read by laspy and lazrs, the extra `formats`.

laspy 2.7 accepts a LAS file that ends early at the end of a point, in silence, and follows a header that claims four
billion records for minutes: both are checked here. A LAZ file that ends early is refused by lazrs.

Source: LAS Specification 1.4 (ASPRS).
"""

import io
import struct

import numpy as np
from numpy.typing import NDArray

from pc_ewa.package import missing_package

_COUNTS = struct.Struct("<HII")  # bytes of the header, where the points begin, and the records between the two
_COUNTS_AT = 94
_SMALLEST_RECORD = 54  # bytes
_SMALLEST_POINT = 20  # bytes; each chunk begins with a whole one
_CHUNK = 1 << 20  # points that are unpacked at a time: a header may claim any number


def parse_las(data: bytes) -> NDArray[np.float64]:
    """Read a whole file: the points (P, 3), scaled and moved as its header tells, in float64.

    Raises:
        MissingPackageError: laspy or lazrs is not installed.
        ValueError: damaged or cut short.
    """
    try:
        import laspy
        import lazrs  # noqa: F401  # laspy unpacks with it
    except ModuleNotFoundError as error:
        raise missing_package(error, "reading LAS and LAZ") or error from None
    if data[:4] != b"LASF" or len(data) < _COUNTS_AT + _COUNTS.size:
        raise ValueError("it ends early, or is no LAS")
    header_size, begin, records = _COUNTS.unpack_from(data, _COUNTS_AT)
    if not header_size + records * _SMALLEST_RECORD <= begin <= len(data):
        raise ValueError(f"it ends early: its header, {records} records and points do not fit into {len(data)} bytes")
    try:
        with laspy.open(io.BytesIO(data), laz_backend=laspy.LazBackend.Lazrs, read_evlrs=False) as reader:
            header = reader.header
            if not header.are_points_compressed and begin + header.point_count * header.point_format.size > len(data):
                raise ValueError(f"it ends early: it does not hold the {header.point_count} points that it claims")
            if header.are_points_compressed:
                _check_chunks(data, begin)
            chunks = [_scaled(chunk, header) for chunk in reader.chunk_iterator(_CHUNK)]
    except (ValueError, MemoryError):
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damage makes laspy raise almost anything, and lazrs what is not an Exception
        raise ValueError(f"it is damaged or ends early: {type(error).__name__} {error}") from error
    points = np.concatenate(chunks) if chunks else np.zeros((0, 3))
    if len(points) != header.point_count:
        raise ValueError(f"it ends early: it holds {len(points)} of the {header.point_count} points that it claims")
    return points


def _check_chunks(data: bytes, begin: int) -> None:
    """Refuse a table of more chunks than there can be: lazrs takes memory for all that it claims, or ends the process.

    Raises:
        ValueError: no such table, or one that claims too much.
    """
    (place,) = struct.unpack_from("<q", data, begin)
    if place == -1:  # written as a stream: it stands at the end
        (place,) = struct.unpack_from("<q", data, len(data) - 8)
    if not begin + 8 <= place <= len(data) - 8:
        raise ValueError("it ends early: its table of chunks is not in it")
    (number,) = struct.unpack_from("<4xI", data, place)
    if number * _SMALLEST_POINT > len(data):
        raise ValueError(f"it claims {number} chunks of points, more than {len(data)} bytes can hold")


def _scaled(chunk: object, header: object) -> NDArray[np.float64]:
    whole = np.stack([chunk.X, chunk.Y, chunk.Z], axis=-1)  # type: ignore[attr-defined]
    return whole * np.asarray(header.scales) + np.asarray(header.offsets)  # type: ignore[attr-defined]
