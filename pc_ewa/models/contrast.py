"""Momentum contrast (MoCo, arXiv 1911.05722), as Point-BERT uses it: telling clouds, or mixtures of two, apart."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def cutmix(*tensors: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
    """Exchange patches between sample i and sample B - 1 - i: keep each with a chance drawn for its sample.

    Args:
        tensors: (B, G, ...), all treated alike.
        generator: on the device of the tensors; None is torch's own.

    Returns:
        The mixed tensors, and the expected share (B,) of sample i in the new sample i.
    """
    first, device = tensors[0], tensors[0].device
    share = torch.rand(first.shape[0], device=device, generator=generator)
    kept = torch.rand(first.shape[:2], device=device, generator=generator) < share[:, None]
    return [torch.where(kept.view(*kept.shape, *[1] * (x.dim() - 2)), x, x.flip(0)) for x in tensors], share


def contrast(query: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the key of each cloud among those in the queue.

    Args:
        query: descriptions (B, D), of any length.
        keys: (B, D), of length 1, as the next.
        queue: keys of other clouds (D, K).
        temperature: what similarities are divided by.
    """
    with torch.autocast(keys.device.type, enabled=False):
        query = F.normalize(query, dim=1)
        logits = torch.cat([(query * keys).sum(dim=1, keepdim=True), query @ queue], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))


def contrast_mixed(query: Tensor, keys: Tensor, queue: Tensor, temperature: float, share: Tensor) -> Tensor:
    """Cross-entropy of finding the keys of the two clouds that each query is mixed of, weighted by their shares.

    Args:
        query: descriptions (B, D) of mixed clouds, of any length: of cloud i, and of cloud B - 1 - i.
        keys: (B, D) of the clouds, of length 1, as the next.
        queue: keys of other clouds (D, K).
        temperature: what similarities are divided by.
        share: expected share of cloud i in mixed cloud i, (B,).
    """
    with torch.autocast(keys.device.type, enabled=False):
        logits = F.normalize(query, dim=1) @ torch.cat([keys.T, queue], dim=1) / temperature
    one = torch.arange(len(keys), device=keys.device)
    own, other = (F.cross_entropy(logits, target, reduction="none") for target in (one, one.flip(0)))
    return (share * own + (1 - share) * other).mean()


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Put the keys (B, D) of all processes, in the order of their ranks, in place of the oldest in the queue (D, K).

    Args:
        queue: changed in place.
        pointer: (1,), where the oldest key is; moved on in place.
        keys: those of this process; as many in each.

    Raises:
        ValueError: more keys than the queue holds.
    """
    if dist.is_initialized():
        everyone = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, keys.contiguous())
        keys = torch.cat(everyone)
    count, room = len(keys), queue.shape[1]
    if count > room:
        raise ValueError(f"a step made {count} keys for a queue of {room}; make queue_size at least {count}")
    slots = (pointer + torch.arange(count, device=keys.device)) % room
    queue[:, slots] = keys.T.to(queue.dtype)
    pointer.copy_((pointer + count) % room)
