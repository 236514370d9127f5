# mypy: ignore-errors
# ruff: noqa: N803, N806
# Functions here are in the language of Triton, where compile-time constants are written in capitals.
"""The Triton kernels. Each docstring describes one program. `triton_backend` launches them and chooses the sizes.

All compute in float32, add squares in the order of `reference`, and are launched without fused multiply-add. So
distances are equal to those of the reference bit for bit, and so are indices, ties included. Clouds have the layout
(B, N, 3). `lengths` (B,) gives the number of points of each cloud; None means all N. Padding may hold anything, also
NaN, and is never used.
"""

import triton
import triton.language as tl

# A key holds a distance and its index in one integer. The bits of non-negative floats sort like the floats, so one
# comparison of keys compares distances and gives ties to the lowest index. Padding is at distance inf, and comes after
# real points at distance inf, because its index is higher.
_INDEX_BITS = tl.constexpr(32)
_INDEX_MASK = tl.constexpr(0x7FFFFFFF)
_LAST_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def _key(distance, index):
    return (distance.to(tl.int32, bitcast=True).to(tl.int64) << _INDEX_BITS) | index


@triton.jit
def _key_distance(key):
    return (key >> _INDEX_BITS).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _key_index(key):
    return key & _INDEX_MASK


@triton.jit
def _length(lengths, cloud, count):
    """Return the number of points of a cloud."""
    if lengths is None:
        return count
    else:
        return tl.load(lengths + cloud).to(tl.int32)


@triton.jit
def _point(x, step):
    """Return the coordinates of one point, which are `step` numbers apart in memory."""
    return tl.load(x), tl.load(x + step), tl.load(x + 2 * step)


@triton.jit
def _load(points, index, inside, other):
    """Return the coordinates of points, or `other` for points that are not inside."""
    x = tl.load(points + index * 3, mask=inside, other=other)
    y = tl.load(points + index * 3 + 1, mask=inside, other=other)
    z = tl.load(points + index * 3 + 2, mask=inside, other=other)
    return x, y, z


@triton.jit
def _squared_norm(x, y, z):
    return (x * x + y * y) + z * z


@triton.jit
def farthest_point_sample(points, start, lengths, chosen, count, n, near_origin, BLOCK: tl.constexpr):
    """Sample one cloud. Coordinates and distances to the nearest chosen point stay in registers for all n rounds."""
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * count * 3
    chosen += cloud * n
    index = tl.arange(0, BLOCK)
    inside = index < _length(lengths, cloud, count)
    x, y, z = _load(points, index, inside, 0.0)
    # -1 for points that must not be chosen. Its bits as an integer are also below those of all distances. If all points
    # are at -1, the key selects index 0.
    nearest = tl.where(inside & (_squared_norm(x, y, z) > near_origin), float("inf"), -1.0)
    last = tl.zeros((), tl.int64) if start is None else tl.load(start + cloud)
    tl.store(chosen, last)
    for i in range(1, n):
        # All threads read the chosen point from memory: cheaper than a second reduction that broadcasts it.
        last_x, last_y, last_z = _point(points + last * 3, 1)
        nearest = tl.minimum(nearest, _squared_norm(x - last_x, y - last_y, z - last_z))
        # One reduction finds the largest distance and its index. The index counts down in the key, so that the maximum
        # gives ties to the lowest index.
        last = _INDEX_MASK - _key_index(tl.max(_key(nearest, _INDEX_MASK - index), 0))
        tl.store(chosen + i, last)


@triton.jit
def farthest_point_sample_streaming(planes, nearest, start, chosen, count, n, TILE: tl.constexpr):
    """Sample one cloud that is too large for registers. `planes` (B, 3, N) and `nearest` (B, N) are read in each round.

    `nearest` starts at inf, or at -1 for points that must not be chosen, and is changed in place.
    """
    cloud = tl.program_id(0).to(tl.int64)
    planes += cloud * count * 3
    nearest += cloud * count
    chosen += cloud * n
    last = tl.zeros((), tl.int64) if start is None else tl.load(start + cloud)
    tl.store(chosen, last)
    for i in range(1, n):
        last_x, last_y, last_z = _point(planes + last, count)
        # The best key of each column over all tiles, so that the threads wait for each other only in one reduction per
        # round. Its barrier also makes the stores of this round visible to all threads in the next.
        # -_LAST_KEY is below every key, also below those of -1, whose bits are a negative integer.
        best = tl.full([TILE], -_LAST_KEY, tl.int64)
        for begin in range(0, count, TILE):
            index = begin + tl.arange(0, TILE)
            inside = index < count
            x = tl.load(planes + index, mask=inside)
            y = tl.load(planes + count + index, mask=inside)
            z = tl.load(planes + 2 * count + index, mask=inside)
            before = tl.load(nearest + index, mask=inside, other=-1.0)
            after = tl.minimum(before, _squared_norm(x - last_x, y - last_y, z - last_z))
            after = tl.where(before < 0, -1.0, after)  # padding may be NaN
            tl.store(nearest + index, after, mask=inside)
            best = tl.maximum(best, _key(after, _INDEX_MASK - index))
        last = _INDEX_MASK - _key_index(tl.max(best, 0))
        tl.store(chosen + i, last)


@triton.constexpr_function
def _log2(power):
    return power.bit_length() - 1


@triton.jit
def _compare(keys, STRIDE: tl.constexpr, RUN: tl.constexpr, DESCENDING: tl.constexpr):
    """Order every pair of keys that are a stride apart."""
    SIZE: tl.constexpr = keys.shape[0]
    PAIRS: tl.constexpr = SIZE // (2 * STRIDE)
    pairs = tl.reshape(keys, [PAIRS, 2, STRIDE])
    # The other key of each pair without indexing: the sum of both minus this one. Integers may overflow in the sum and
    # wrap back in the difference.
    other = tl.sum(pairs, 1, keep_dims=True) - pairs
    # Runs are sorted in alternating directions; `turn` has the direction of the run, plus 1 for the second of a pair.
    turn = tl.arange(0, PAIRS)[:, None, None] // (RUN // (2 * STRIDE)) + tl.arange(0, 2)[None, :, None] + DESCENDING
    return tl.reshape(tl.where((pairs > other) == (turn % 2 == 0), other, pairs), [SIZE])


@triton.jit
def _merge_runs(keys, RUN: tl.constexpr, DESCENDING: tl.constexpr):
    """Sort runs of keys that rise and then fall (bitonic merge).

    The sorted runs rise and fall in turn. DESCENDING is 1 if the first falls.
    """
    # By hand with tl.sum: Triton's interpreter, which the tests use, runs tl.sort and tl.topk element by element.
    for step in tl.static_range(_log2(RUN)):
        keys = _compare(keys, RUN >> (step + 1), RUN, DESCENDING)
    return keys


@triton.jit
def _smallest(keys, K: tl.constexpr):
    """Return the K smallest keys, ascending."""
    for level in tl.static_range(1, _log2(K) + 1):
        keys = _merge_runs(keys, 2**level, 0)
    # Bitonic selection: for an ascending and a descending run, the smaller key of each pair gives the K smallest of
    # both. The result rises and falls again, so it can be merged.
    for _ in tl.static_range(_log2(keys.shape[0] // K)):
        keys = tl.min(tl.reshape(keys, [keys.shape[0] // (2 * K), 2, K]), 1)
        keys = _merge_runs(tl.reshape(keys, [keys.shape[0] * K]), K, 0)
    return keys


@triton.jit
def _distances(query, points, index, length):
    """Return the squared distances of the point at `query` to points, which are inf beyond the length."""
    query_x, query_y, query_z = _point(query, 1)
    x, y, z = _load(points, index, index < length, float("inf"))
    return _squared_norm(query_x - x, query_y - y, query_z - z)


@triton.jit
def knn(queries, points, lengths, distances, indices, num_queries, count, k, K: tl.constexpr, TILE: tl.constexpr):
    """Answer one query. Merge the best K so far, a power of two, with those of each tile, and store the first k."""
    row = tl.program_id(0).to(tl.int64)
    cloud = row // num_queries
    length = _length(lengths, cloud, count)
    best = tl.full([K], _LAST_KEY, tl.int64)  # descending, for a bitonic merge with the ascending keys of a tile
    for begin in range(0, length, TILE):
        index = begin + tl.arange(0, TILE)
        distance = _distances(queries + row * 3, points + cloud * count * 3, index, length)
        best = _merge_runs(tl.minimum(best, _smallest(_key(distance, index), K)), K, 1)
    rank = K - 1 - tl.arange(0, K)
    tl.store(distances + row * k + rank, _key_distance(best), mask=rank < k)
    tl.store(indices + row * k + rank, _key_index(best), mask=rank < k)


@triton.jit
def ball_query(queries, points, lengths, indices, num_queries, count, squared_radius, k, TILE: tl.constexpr):
    """Answer one query. Store the points found in each tile behind those found before, and stop at k points."""
    row = tl.program_id(0).to(tl.int64)
    cloud = row // num_queries
    length = _length(lengths, cloud, count)
    indices += row * k
    found = tl.zeros((), tl.int32)
    first = tl.full((), _INDEX_MASK, tl.int32)
    begin = tl.zeros((), tl.int32)
    while (begin < length) & (found < k):
        index = begin + tl.arange(0, TILE)
        inside = _distances(queries + row * 3, points + cloud * count * 3, index, length) < squared_radius
        # The running count of points inside is the position to store each of them, in the order of their indices.
        place = found + tl.cumsum(inside.to(tl.int32), 0) - 1
        tl.store(indices + place, index, mask=inside & (place < k))
        first = tl.minimum(first, tl.min(tl.where(inside, index, _INDEX_MASK), 0))
        found += tl.sum(inside.to(tl.int32), 0)
        begin += TILE
    first = tl.where(found > 0, first, 0)
    for begin in range(found, k, TILE):
        place = begin + tl.arange(0, TILE)
        tl.store(indices + place, tl.zeros([TILE], tl.int64) + first, mask=place < k)


@triton.jit
def nearest(x, y, x_lengths, y_lengths, distances, indices, x_count, y_count, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Answer ROWS points of x. Keep the nearest in each column of the tiles of y; compare the columns at the end."""
    blocks = tl.cdiv(x_count, ROWS)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    inside = row < _length(x_lengths, cloud, x_count)
    length = _length(y_lengths, cloud, y_count)
    x += cloud * x_count * 3
    y += cloud * y_count * 3
    row_x, row_y, row_z = _load(x, row[:, None], inside[:, None], 0.0)
    column = tl.arange(0, TILE)[None, :]
    # If all distances are inf, none is smaller, and the lowest index 0 is the right answer.
    distance = tl.full([ROWS, TILE], float("inf"), tl.float32)
    index = tl.zeros([ROWS, TILE], tl.int32) + column
    for begin in range(0, length, TILE):
        new_x, new_y, new_z = _load(y, begin + column, begin + column < length, float("inf"))
        new = _squared_norm(row_x - new_x, row_y - new_y, row_z - new_z)
        # Not <=: indices rise from tile to tile, so each column keeps the lowest index of equal distances.
        index = tl.where(new < distance, begin + column, index)
        distance = tl.minimum(distance, new)
    key = tl.where(inside, tl.min(_key(distance, index), 1), 0)
    tl.store(distances + cloud * x_count + row, _key_distance(key), mask=row < x_count)
    tl.store(indices + cloud * x_count + row, _key_index(key), mask=row < x_count)


@triton.jit
def nearest_pull(
    x, y, index, grad, x_grad, y_grad, x_count, y_count, KEEP: tl.constexpr, GIVE: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute the gradient of the distances from x to y.

    KEEP stores it for x. GIVE adds its opposite to the gradients of the nearest points of y.
    """
    blocks = tl.cdiv(x_count, BLOCK)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = row < x_count
    twice = 2 * tl.load(grad + cloud * x_count + row, mask=inside, other=0.0)
    # Points without a gradient are skipped. Padding has none, and its coordinates may be NaN.
    active = twice != 0
    to = (cloud * y_count + tl.load(index + cloud * x_count + row, mask=active, other=0)) * 3
    own = (cloud * x_count + row) * 3
    for axis in tl.static_range(3):
        near = tl.load(y + to + axis, mask=active, other=0.0)
        pull = twice * (tl.load(x + own + axis, mask=active, other=0.0) - near)
        if KEEP:
            tl.store(x_grad + own + axis, pull, mask=inside)
        if GIVE:
            tl.atomic_add(y_grad + to + axis, -pull, mask=active, sem="relaxed")
