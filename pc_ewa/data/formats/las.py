"""LAS and LAZ files of laser scanners, read by laspy and lazrs (the extra `formats`).

Sizes are checked before these packages read a file. laspy 2.7 silently accepts a LAS file that is truncated between two
points, and spends minutes on a header that claims four billion records. lazrs 0.8 aborts the process if a LAZ file
claims as many chunks.

Source: LAS Specification 1.4 (ASPRS).
"""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc_ewa.package import missing_package

# Header fields at byte 94: size of the header, offset of the points, number of records between the two.
_COUNTS = struct.Struct("<HII")
_COUNTS_AT = 94
_SMALLEST_RECORD = 54  # bytes
# Bytes of the smallest point. Each LAZ chunk begins with an uncompressed point, which bounds the number of chunks.
_SMALLEST_POINT = 20
# Number of layers of the point formats that LAZ compresses attribute by attribute.
_LAYERS = {6: 9, 7: 10, 8: 11, 9: 10, 10: 12}
# Points that are unpacked at a time, because a header may claim any number.
_CHUNK = 1 << 20


def parse_las(data: bytes) -> NDArray[np.float64]:
    """Return the points (P, 3) of a whole file in float64, with the scale and offset of its header applied.

    Raises:
        MissingPackageError: laspy or lazrs is not installed.
        ValueError: damaged or cut short.
    """
    try:
        import laspy
        import lazrs  # noqa: F401  # the LAZ backend of laspy
    except ModuleNotFoundError as error:
        raise missing_package(error, "reading LAS and LAZ") or error from None
    if data[:4] != b"LASF" or len(data) < _COUNTS_AT + _COUNTS.size:
        raise ValueError("it ends early, or is not LAS")
    header_size, begin, records = _COUNTS.unpack_from(data, _COUNTS_AT)
    if not header_size + records * _SMALLEST_RECORD <= begin <= len(data):
        raise ValueError(f"it ends early: its header, {records} records and points do not fit into {len(data)} bytes")
    try:
        with laspy.open(io.BytesIO(data), laz_backend=laspy.LazBackend.Lazrs, read_evlrs=False) as reader:
            header = reader.header
            if not header.are_points_compressed and begin + header.point_count * header.point_format.size > len(data):
                raise ValueError(f"it ends early: it does not hold the {header.point_count} points that it claims")
            if header.are_points_compressed:
                _check_chunks(data, begin, header)
            chunks = [_scaled(chunk, header) for chunk in reader.chunk_iterator(_CHUNK)]
    except (ValueError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    # A damaged file makes laspy raise almost anything. A panic of lazrs, which is Rust, is a BaseException.
    except BaseException as error:
        raise ValueError(f"it is damaged or ends early: {type(error).__name__} {error}") from error
    points = np.concatenate(chunks) if chunks else np.zeros((0, 3))
    if len(points) != header.point_count:
        raise ValueError(f"it ends early: it holds {len(points)} of the {header.point_count} points that it claims")
    return points


def _check_chunks(data: bytes, begin: int, header: Any) -> None:
    """Refuse a LAZ file whose chunks are incomplete, or do not have as many points as the header claims.

    lazrs allocates memory for any number of chunks, and decodes points from a truncated chunk without an error.

    Raises:
        ValueError: the message names the contradiction.
    """
    import lazrs

    (place,) = struct.unpack_from("<q", data, begin)
    # A writer that cannot seek stores -1 here, and the offset of the table in the last 8 bytes.
    if place == -1:
        (place,) = struct.unpack_from("<q", data, len(data) - 8)
    if not begin + 8 <= place <= len(data) - 8:
        raise ValueError("it ends early: its table of chunks is not in it")
    (number,) = struct.unpack_from("<4xI", data, place)
    if number * _SMALLEST_POINT > len(data):
        raise ValueError(f"it claims {number} chunks of points, more than {len(data)} bytes can hold")
    layout = lazrs.LazVlr(header.vlrs.get("LasZipVlr")[0].record_data_bytes())
    stream = io.BytesIO(data)
    stream.seek(begin)
    chunks, size, points = lazrs.read_chunk_table(stream, layout), layout.chunk_size(), header.point_count
    if begin + 8 + sum(length for _, length in chunks) != place:
        raise ValueError("its chunks do not end where its table of them begins")
    if header.point_format.id in _LAYERS:
        layers = _LAYERS[header.point_format.id] + header.point_format.num_extra_bytes
        ends = np.cumsum([begin + 8] + [length for _, length in chunks])
        # A chunk is one uncompressed point, the number of points, the length of each layer, and the layers.
        heads = [struct.unpack_from(f"<I{layers}I", data, end + layout.item_size()) for end in ends[:-1]]
        lengths = [layout.item_size() + 4 * len(head) + sum(head[1:]) for head in heads]
        sound = sum(head[0] for head in heads) == points and lengths == [length for _, length in chunks]
    # The older formats store no count in a chunk: it is in the table, or all chunks but the last are full.
    elif layout.uses_variable_size_chunks():
        sound = sum(count for count, _ in chunks) == points
    else:
        sound = (len(chunks) - 1) * size < points <= len(chunks) * size or not points
    if not sound:
        raise ValueError(f"its {len(chunks)} chunks do not hold the {points} points that it claims")


def _scaled(chunk: Any, header: Any) -> NDArray[np.float64]:
    whole = np.stack([chunk.X, chunk.Y, chunk.Z], axis=-1)
    return whole * np.asarray(header.scales) + np.asarray(header.offsets)
