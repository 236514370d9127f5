"""Pack the per-sample correctness of a model into a short text, to compare two models sample by sample later."""

import base64

import numpy as np
import torch
from torch import Tensor


def pack_right(right: Tensor) -> str:
    """Write booleans (N,) as their number and base64, eight booleans to a byte.

    Example:
        >>> import torch
        >>> pack_right(torch.tensor([True, False, True]))
        '3:oA=='
    """
    bits = np.packbits(right.cpu().numpy().astype(bool))
    return f"{len(right)}:{base64.b64encode(bits.tobytes()).decode()}"


def unpack_right(text: str) -> Tensor:
    """Read what `pack_right` wrote: booleans (N,).

    Raises:
        ValueError: a text that `pack_right` did not write.
    """
    count, _, bits = text.partition(":")
    content = base64.b64decode(bits, validate=True)
    if len(content) != -(-int(count) // 8):
        raise ValueError(f"{len(content)} bytes are not the bits of {count} samples")
    return torch.from_numpy(np.unpackbits(np.frombuffer(content, np.uint8), count=int(count)).astype(bool))
