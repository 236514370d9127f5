"""Other libraries that do what our ops do, each used as well as it can be: batched, or clouds spread over all cores.

A peer's `prepare` takes the inputs of the op, converts them to what the library wants, and returns the call to time
and what brings its result into our form: indices (B, n) for FPS, (B, M, k) for kNN, the value for Chamfer.
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
    """A library and one way to use it; `pip` is its package, empty for torch itself."""

    name: str
    pip: str
    prepare: Callable[..., Prepared]
    gpu: bool = False  # runs on CUDA tensors too


def contenders(peers: Sequence[Peer], device: torch.device, *inputs: Any) -> tuple[list[Contender], dict[str, str]]:
    """Prepare the peers that are installed. Returns them, and the missing pip packages with the reason."""
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
    """Map over items with torch's number of threads; each thread takes neighbouring items."""
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
    """Stack the indices of each cloud, arrays of any integer type, to one tensor."""
    return torch.stack([torch.as_tensor(result.astype("int64")) for result in results])


def tree_height(count: int) -> int:
    """Return the height of the QuickFPS tree: its authors' advice for small, medium and large clouds."""
    return 3 if count <= 2048 else 5 if count <= 16384 else 7


def fpsample_vanilla(points: Tensor, n: int) -> Prepared:
    """Plain FPS; it likes its clouds in Fortran order, and lets no other thread run meanwhile."""
    import fpsample
    import numpy as np

    clouds = [np.asfortranarray(cloud) for cloud in points.numpy()]
    return lambda: [fpsample.fps_sampling(cloud, n, 0) for cloud in clouds], stack


def fpsample_bucket(points: Tensor, n: int) -> Prepared:
    """QuickFPS; exact, but the start it is given counts in the order of its tree."""
    import fpsample

    height = tree_height(points.shape[1])
    clouds = list(points.numpy())
    return lambda: [fpsample.bucket_fps_kdline_sampling(cloud, n, height, 0) for cloud in clouds], stack


def quickfps(points: Tensor, n: int) -> Prepared:
    """QuickFPS for torch: batched, on all cores."""
    import torch_quickfps

    height = tree_height(points.shape[1])
    return lambda: torch_quickfps.sample_idx(points, n, h=height, start_idx=0), lambda index: index


def cluster_fps(points: Tensor, n: int) -> Prepared:
    """FPS of torch_cluster: clouds one after the other in one tensor, and a ratio in place of a count."""
    import torch_cluster

    flat, batch, offset = flatten(points)
    ratio = (n - 0.5) / points.shape[1]  # it rounds up, so that n itself might become n + 1
    return (
        lambda: torch_cluster.fps(flat, batch, ratio, random_start=False),
        lambda index: index.view(len(points), n) - offset[:, None],
    )


def pointnet2_fps(points: Tensor, n: int) -> Prepared:
    """The CUDA kernel of pointnet2_ops; it skips points near the origin, which is then seen as not exact."""
    from pointnet2_ops import pointnet2_utils

    return lambda: pointnet2_utils.furthest_point_sample(points, n), lambda index: index.long()


def open3d_fps(points: Tensor, n: int) -> Prepared:
    """FPS of open3d's point clouds; it returns points, so their indices are looked up, in ascending order."""
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
    """Compute all distances, then take the smallest; torch.cdist expands |a - b|² for clouds of more than 25 points."""
    return lambda: torch.cdist(queries, points).topk(k, largest=False).indices, lambda index: index


def plain_cdist_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Use torch.cdist without its expansion: it subtracts."""
    mode = "donot_use_mm_for_euclid_dist"
    return lambda: torch.cdist(queries, points, compute_mode=mode).topk(k, largest=False).indices, lambda index: index


def expansion_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Expand |a - b|², as most published code does."""
    return lambda: expansion(queries, points).topk(k, largest=False).indices, lambda index: index


def open3d_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """A tree of open3d's for each cloud; a search takes all cores."""
    from open3d.core import Tensor as Open3dTensor
    from open3d.core.nns import NearestNeighborSearch

    pairs = [tuple(map(Open3dTensor.from_numpy, pair)) for pair in zip(queries.numpy(), points.numpy(), strict=True)]

    def search(pair: Any) -> Any:
        tree = NearestNeighborSearch(pair[1])
        tree.knn_index()
        return tree.knn_search(pair[0], k)[0]

    return lambda: [search(pair) for pair in pairs], lambda found: stack([index.numpy() for index in found])


def scipy_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """A tree of scipy's for each cloud, built the quick way, as it is used only once."""
    from scipy.spatial import cKDTree

    pairs = list(zip(queries.numpy(), points.numpy(), strict=True))
    workers = torch.get_num_threads() if len(pairs) == 1 else 1

    def search(pair: Any) -> Any:
        return cKDTree(pair[1], balanced_tree=False, compact_nodes=False).query(pair[0], k, workers=workers)[1]

    return lambda: spread(search, pairs), lambda found: stack([index.reshape(-1, k) for index in found])


def faiss_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """A flat index of faiss for each cloud."""
    import faiss

    pairs = list(zip(queries.numpy(), points.numpy(), strict=True))
    workers = torch.get_num_threads() if len(pairs) == 1 else 1

    def search(pair: Any) -> Any:
        faiss.omp_set_num_threads(workers)  # of the thread that this runs in
        index = faiss.IndexFlatL2(3)
        index.add(pair[1])
        return index.search(pair[0], k)[1]

    return lambda: spread(search, pairs), stack


def cluster_knn(queries: Tensor, points: Tensor, k: int) -> Prepared:
    """Trees of torch_cluster; without a batch vector it can be told how many threads to use."""
    import torch_cluster

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
    """Clouds as PyG has them: points (B·N, 3), the cloud of each, and the index of the first of each cloud."""
    clouds = torch.arange(len(points), device=points.device)
    return points.flatten(0, 1), clouds.repeat_interleave(points.shape[1]), clouds * points.shape[1]


def expansion(x: Tensor, y: Tensor) -> Tensor:
    """|a|² + |b|² - 2ab, in one matrix product."""
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
