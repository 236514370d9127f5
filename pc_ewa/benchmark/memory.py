"""Peak memory of this process, as Linux counts it."""

import re
from collections.abc import Callable
from pathlib import Path

RESET = Path("/proc/self/clear_refs")


def can_weigh() -> bool:
    """Whether this system tells."""
    return RESET.exists()


def peak_of(call: Callable[[], object]) -> float:
    """MB that a call takes beyond what is there when it begins, at its peak."""
    RESET.write_text("5")  # Linux forgets the peak so far
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> int:
    """Bytes, from the kernel's view of this process."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
