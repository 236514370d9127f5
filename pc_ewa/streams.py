"""Seeds of independent random streams."""

import numpy as np


def stream(*numbers: int) -> int:
    """Return the seed of a random stream. Equal numbers give equal seeds; other numbers give unrelated seeds."""
    # SeedSequence mixes all bits, unlike a sum such as seed + step, where streams of neighbours would coincide. The
    # shift makes the seed fit into the int64 of torch.Generator.manual_seed.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
