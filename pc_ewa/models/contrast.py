"""Momentum contrast (MoCo, arXiv 1911.05722) for clouds and for mixtures of two clouds, as in Point-BERT."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def cutmix(*tensors: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
    """Mix sample i with sample B - 1 - i: draw a fraction for each sample, and keep each patch with that probability.

    Args:
        tensors: tensors (B, G, ...). The same patches are exchanged in all of them.
        generator: generator on the device of the tensors. None uses torch's global one.

    Returns:
        The mixed tensors, and the expected fraction (B,) of sample i in mixed sample i.
    """
    # Sample B - 1 - i is a flip of the batch: the partner needs no draw and no gather, and the loader shuffles samples.
    first, device = tensors[0], tensors[0].device
    share = torch.rand(first.shape[0], device=device, generator=generator)
    kept = torch.rand(first.shape[:2], device=device, generator=generator) < share[:, None]
    return [torch.where(kept.view(*kept.shape, *[1] * (x.dim() - 2)), x, x.flip(0)) for x in tensors], share


def contrast(query: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of selecting the key of the same cloud among the keys in the queue.

    Args:
        query: features (B, D); they are normalised here.
        keys: features (B, D) of unit length.
        queue: keys of other clouds, (D, K), of unit length.
        temperature: divisor of the similarities.
    """
    # No autocast: similarities are divided by a temperature of 0.07, and bfloat16 has only 8 significant bits.
    with torch.autocast(keys.device.type, enabled=False):
        query = F.normalize(query, dim=1)
        logits = torch.cat([(query * keys).sum(dim=1, keepdim=True), query @ queue], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))


def contrast_mixed(query: Tensor, keys: Tensor, queue: Tensor, temperature: float, share: Tensor) -> Tensor:
    """Compute the cross-entropies of selecting the keys of both clouds in a mixture, weighted by their fractions.

    Args:
        query: features (B, D) of mixtures of cloud i and cloud B - 1 - i; they are normalised here.
        keys: features (B, D) of the clouds, of unit length.
        queue: keys of other clouds, (D, K), of unit length.
        temperature: divisor of the similarities.
        share: fraction of cloud i in mixture i, (B,).
    """
    # Here the keys of all clouds of the batch are candidates too, because the targets of a mixture are two of them.
    with torch.autocast(keys.device.type, enabled=False):
        logits = F.normalize(query, dim=1) @ torch.cat([keys.T, queue], dim=1) / temperature
    one = torch.arange(len(keys), device=keys.device)
    own, other = (F.cross_entropy(logits, target, reduction="none") for target in (one, one.flip(0)))
    return (share * own + (1 - share) * other).mean()


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Replace the oldest keys in the queue by the keys of all processes, in the order of their ranks.

    Args:
        queue: (D, K), changed in place.
        pointer: (1,), the column of the oldest key, changed in place.
        keys: keys (B, D) of this process. Their number must be the same on all processes.

    Raises:
        ValueError: more keys than the queue holds.
    """
    if dist.is_initialized():
        # Every process enqueues the keys of all, in the order of ranks, so that the queues stay equal.
        everyone = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, keys.contiguous())
        keys = torch.cat(everyone)
    count, room = len(keys), queue.shape[1]
    if count > room:
        raise ValueError(f"a step made {count} keys for a queue of {room}; make queue_size at least {count}")
    # A ring buffer. The pointer stays on the device: reading it as a number would wait for the GPU.
    slots = (pointer + torch.arange(count, device=keys.device)) % room
    queue[:, slots] = keys.T.to(queue.dtype)
    pointer.copy_((pointer + count) % room)
