"""Other libraries with the same ops, each used in its fastest way: batched, or with clouds spread over all cores.

A peer's `prepare` converts the inputs of the op to the types of the library. It returns the call to time, and a
function that converts the result to our form: indices (B, n) for FPS, (B, M, k) for kNN, the value for Chamfer.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc_ewa.benchmark.contest import Contender

Prepared = tuple[Callable[[], Any], Callable[[Any], Any]]


class Peer(NamedTuple):
    """A library and one way to use it.

    Attributes:
        name: for the table.
        pip: its package, empty for torch.
        prepare: see the module.
        gpu: True if it also runs on CUDA tensors.
    """

    name: str
    pip: str
    prepare: Callable[..., Prepared]
    gpu: bool = False


def contenders(peers: Sequence[Peer], device: torch.device, *inputs: Any) -> tuple[list[Contender], dict[str, str]]:
    """Prepare the installed peers. Returns their contenders, and the missing pip packages with the reason."""
    ready, missing = [], {}
    for peer in peers:
        if device.type != "cpu" and not peer.gpu:
            missing[peer.pip] = "CPU only"
            continue
        try:
            ready.append(Contender(peer.name, *peer.prepare(*inputs), pip=peer.pip))
        except ModuleNotFoundError:
            missing[peer.pip] = "not installed"
        except (ImportError, OSError) as error:  # built for another torch, or a system library is missing
            missing[peer.pip] = f"does not import: {' '.join(str(error).split())[:100]}"
    return ready, missing


def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Map a function over items on as many threads as torch has. Each thread takes consecutive items."""
    threads = min(torch.get_num_threads(), len(items))
    if threads == 1:
        return [function(item) for item in items]
    size = -(-len(items) // threads)
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    return [result for part in _pool(threads).map(lambda part: [function(item) for item in part], parts)
            for result in part]  # fmt: skip


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def stack(results: Sequence[Any]) -> Tensor:
    """Stack arrays of indices, of any integer type, to one tensor."""
    return torch.stack([torch.as_tensor(result.astype("int64")) for result in results])


def tree_height(count: int) -> int:
    """Return the height of the QuickFPS tree, as its authors advise for small, medium and large clouds."""
    return 3 if count <= 2048 else 5 if count <= 16384 else 7


def fpsample_vanilla(points: Tensor, n: int) -> Prepared:
    """Prepare plain FPS of fpsample. It holds Python's global lock, so that threads would not help."""
    import fpsample
    import numpy as np

    # It reads coordinate by coordinate: clouds in Fortran order are the fastest.
    clouds = [np.asfortranarray(cloud) for cloud in points.numpy()]
    return lambda: [fpsample.fps_sampling(cloud, n, 0) for cloud in clouds], stack


def fpsample_bucket(points: Tensor, n: int) -> Prepared:
    """Prepare QuickFPS of fpsample. It is exact, but its start index counts in the order of its tree."""
    import fpsample

    height = tree_height(points.shape[1])
    clouds = list(points.numpy())
    return lambda: [fpsample.bucket_fps_kdline_sampling(cloud, n, height, 0) for cloud in clouds], stack


def quickfps(points: Tensor, n: int) -> Prepared:
    """Prepare QuickFPS for torch, which is batched and uses all cores."""
    import torch_quickfps

    height = tree_height(points.shape[1])
    return lambda: torch_quickfps.sample_idx(points, n, h=height, start_idx=0), lambda index: index


def cluster_fps(points: Tensor, n: int) -> Prepared:
    """Prepare FPS of torch_cluster, which takes concatenated clouds, and a ratio in place of a number of points."""
    import torch_cluster

    flat, batch, offset = flatten(points)
    # It rounds ratio * N up. With n / N, a rounding error could give n + 1 points.
    ratio = (n - 0.5) / points.shape[1]
    return (
        lambda: torch_cluster.fps(flat, batch, ratio, random_start=False),
        lambda index: index.view(len(points), n) - offset[:, None],
    )


def pointnet2_fps(points: Tensor, n: int) -> Prepared:
    """Prepare the CUDA kernel of pointnet2_ops. It skips points near the origin, and is then judged as not exact."""
    from pointnet2_ops import pointnet2_utils

    return lambda: pointnet2_utils.furthest_point_sample(points, n), lambda index: index.long()


def open3d_fps(points: Tensor, n: int) -> Prepared:
    """Prepare FPS of open3d, which returns points. Their indices are looked up by value, in ascending order."""
    import numpy as np
    import open3d

    clouds = [open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud.double().numpy())) for cloud in points]

    def finish(results: list[Any]) -> Tensor:
        chosen = []
        for cloud, result in zip(points.double().numpy(), results, strict=True):
            index = {row.tobytes(): i for i, row in enumerate(cloud)}
            chosen.append(np.array(sorted(index[row.tobytes()] for row in np.asarray(result.points))))
        return stack(chosen)

    return lambda: [cloud.farthest_point_down_sample(n) for cloud in clouds], finish


def cdist_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare torch.cdist and topk."""
    # For more than 25 points torch.cdist computes |a|² + |b|² - 2ab by a matrix product.
    return lambda: torch.cdist(queries, points).topk(k, largest=False).indices, lambda index: index


def plain_cdist_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare torch.cdist and topk, with distances by subtraction."""
    mode = "donot_use_mm_for_euclid_dist"
    return lambda: torch.cdist(queries, points, compute_mode=mode).topk(k, largest=False).indices, lambda index: index


def expansion_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare the expansion of |a - b|² and topk, as in most published code."""
    return lambda: expansion(queries, points).topk(k, largest=False).indices, lambda index: index


def open3d_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare a tree of open3d for each cloud. A search uses all cores."""
    from open3d.core import Tensor as Open3dTensor
    from open3d.core.nns import NearestNeighborSearch

    pairs = [tuple(map(Open3dTensor.from_numpy, pair)) for pair in zip(queries.numpy(), points.numpy(), strict=True)]

    def search(pair: Any) -> Any:
        tree = NearestNeighborSearch(pair[1])
        tree.knn_index()
        return tree.knn_search(pair[0], k)[0]

    return lambda: [search(pair) for pair in pairs], lambda found: stack([index.numpy() for index in found])


def scipy_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare a k-d tree of scipy for each cloud."""
    from scipy.spatial import cKDTree

    pairs = list(zip(queries.numpy(), points.numpy(), strict=True))
    workers = torch.get_num_threads() if len(pairs) == 1 else 1

    def search(pair: Any) -> Any:
        # A tree is used once: the options that build it fast pay off more than those that search it fast.
        return cKDTree(pair[1], balanced_tree=False, compact_nodes=False).query(pair[0], k, workers=workers)[1]

    return lambda: spread(search, pairs), lambda found: stack([index.reshape(-1, k) for index in found])


def faiss_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare a flat index of faiss for each cloud."""
    import faiss

    pairs = list(zip(queries.numpy(), points.numpy(), strict=True))
    workers = torch.get_num_threads() if len(pairs) == 1 else 1

    def search(pair: Any) -> Any:
        faiss.omp_set_num_threads(workers)  # a setting of the calling thread, so set it in each
        index = faiss.IndexFlatL2(3)
        index.add(pair[1])
        return index.search(pair[0], k)[1]

    return lambda: spread(search, pairs), stack


def cluster_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Prepare kNN of torch_cluster: batched on CUDA, a tree for each cloud on the CPU."""
    import torch_cluster

    # `num_workers` has an effect only without batch vectors, and only on the CPU.
    if points.is_cuda:
        (y, batch_y, _), (x, batch_x, offset) = flatten(queries), flatten(points)
        return (
            lambda: torch_cluster.knn(x, y, k, batch_x, batch_y),
            lambda edges: edges[1].view(len(points), -1, k) - offset[:, None, None],
        )
    pairs = list(zip(queries, points, strict=True))
    workers = torch.get_num_threads() if len(pairs) == 1 else 1
    return (
        lambda: spread(lambda pair: torch_cluster.knn(pair[1], pair[0], k, num_workers=workers), pairs),
        lambda found: torch.stack([edges[1].view(-1, k) for edges in found]),
    )


def flatten(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return clouds in the form of PyG: points (B·N, 3), the cloud of each, and the first index of each cloud."""
    clouds = torch.arange(len(points), device=points.device)
    return points.flatten(0, 1), clouds.repeat_interleave(points.shape[1]), clouds * points.shape[1]


def expansion(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (B, M, N) as |a|² + |b|² - 2ab, by one matrix product."""
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
    return torch.baddbmm(squares, x, y.transpose(1, 2), alpha=-2)


FPS = (
    Peer("fpsample, vanilla", "fpsample", fpsample_vanilla),
    Peer("fpsample, bucket", "fpsample", fpsample_bucket),
    Peer("torch_quickfps", "torch_quickfps", quickfps, gpu=True),
    Peer("torch_cluster", "torch_cluster", cluster_fps, gpu=True),
    Peer("open3d", "open3d", open3d_fps),
    Peer("pointnet2_ops", "pointnet2-ops", pointnet2_fps, gpu=True),
)
KNN = (
    Peer("torch.cdist + topk", "", cdist_knn, gpu=True),
    Peer("torch.cdist (no matmul) + topk", "", plain_cdist_knn, gpu=True),
    Peer("torch, |a|²+|b|²-2ab + topk", "", expansion_knn, gpu=True),
    Peer("open3d", "open3d", open3d_knn),
    Peer("scipy cKDTree", "scipy", scipy_knn),
    Peer("faiss IndexFlatL2", "faiss-cpu", faiss_knn),
    Peer("torch_cluster", "torch_cluster", cluster_knn, gpu=True),
)
