"""Pickles in checkpoint files, looked over before torch follows them: few bytes can ask for any time and memory."""

import pickletools
from pathlib import Path
from typing import IO

from pc_ewa.errors import CheckpointError

_STEPS = 200_000  # torch takes about 5 microseconds for each
_BYTES_A_STEP = 100  # a large file may have more steps: it has more tensors, of some 40 steps each
_LONGEST_MEMO = 1 << 24
_PICKLES_OF_OLD_FILES = 5  # magic number, version, machine, content, names of the storages


def check_pickle(path: Path, file: IO[bytes], pickles: int = 1) -> None:
    """Check that pickles at the start of an open file have no more steps than a file of its size needs.

    Args:
        path: the checkpoint; its size decides how many steps it may have.
        file: open at the first pickle.
        pickles: how many there are, one after another.

    Raises:
        CheckpointError: more steps, a damaged pickle, or a bytearray, which can be of any size.
    """
    left = _STEPS + path.stat().st_size // _BYTES_A_STEP
    try:
        for _ in range(pickles):
            left = _steps_left(path, file, left)
    except CheckpointError:
        raise
    except Exception:  # pickletools raises many kinds for bytes that are no pickle
        raise CheckpointError(f"{path} is damaged or not a file of torch.save: its pickle cannot be read") from None


def check_old_file(path: Path) -> None:
    """Check the pickles in a file of torch before 1.6. Such files have no CRC: other damage cannot be seen.

    Raises:
        CheckpointError: as `check_pickle`.
    """
    with path.open("rb") as file:
        check_pickle(path, file, _PICKLES_OF_OLD_FILES)


def _steps_left(path: Path, file: IO[bytes], left: int) -> int:
    for step, argument, _ in pickletools.genops(file):
        left -= 1
        if left < 0:
            raise CheckpointError(f"{path} has far more steps in its pickle than weights need; it is not read")
        if step.name == "GLOBAL" and argument in ("__builtin__ bytearray", "builtins bytearray"):
            raise CheckpointError(f"{path} holds builtins.bytearray; only plain weights are read")
        if "PUT" in step.name and isinstance(argument, int) and argument > _LONGEST_MEMO:
            raise CheckpointError(f"{path} is damaged: its pickle has an impossible position")
    return left
