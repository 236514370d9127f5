"""Checks of the pickles in checkpoint files before torch runs them. A few bytes can take any time and memory."""

import pickletools
from pathlib import Path
from typing import IO

from pc_ewa.errors import CheckpointError

_STEPS = 200_000  # torch takes about 5 microseconds for a step
_BYTES_A_STEP = 100  # a large file may have more steps, because it has more tensors of about 40 steps each
_LONGEST_MEMO = 1 << 24
_PICKLES_OF_OLD_FILES = 5  # magic number, version, machine, content, names of the storages


def check_pickle(path: Path, file: IO[bytes], pickles: int = 1) -> None:
    """Check that pickles at the start of an open file have no more steps than a file of its size needs.

    Args:
        path: the checkpoint. Its size decides how many steps it may have.
        file: the file, open at the first pickle.
        pickles: number of pickles, one after another.

    Raises:
        CheckpointError: there are more steps, a pickle is damaged, or it makes a bytearray, which can be of any size.
    """
    left = _STEPS + path.stat().st_size // _BYTES_A_STEP
    try:
        for _ in range(pickles):
            left = _steps_left(path, file, left)
    except CheckpointError:
        raise
    except Exception:  # pickletools raises many kinds of errors for bytes that are not a pickle
        raise CheckpointError(f"{path} is damaged or not a file of torch.save: its pickle cannot be read") from None


def check_old_file(path: Path) -> None:
    """Check the pickles in a file of torch before 1.6. Such files have no CRC, so other damage cannot be found.

    Raises:
        CheckpointError: as in `check_pickle`.
    """
    with path.open("rb") as file:
        check_pickle(path, file, _PICKLES_OF_OLD_FILES)


def _steps_left(path: Path, file: IO[bytes], left: int) -> int:
    # genops parses the instructions without running them.
    for step, argument, _ in pickletools.genops(file):
        left -= 1
        if left < 0:
            raise CheckpointError(f"{path} has far more steps in its pickle than weights need; it is not read")
        if step.name == "GLOBAL" and argument in ("__builtin__ bytearray", "builtins bytearray"):
            raise CheckpointError(f"{path} holds builtins.bytearray; only plain weights are read")
        # PUT stores a value at a position of the memo. Pickles of weights number the positions from 0.
        if "PUT" in step.name and isinstance(argument, int) and argument > _LONGEST_MEMO:
            raise CheckpointError(f"{path} is damaged: its pickle has an impossible position")
    return left
