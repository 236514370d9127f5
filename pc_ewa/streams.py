"""Seeds of random streams."""

import numpy as np


def stream(*numbers: int) -> int:
    """Return the seed of a random stream: the same for the same numbers, unrelated for any others."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
