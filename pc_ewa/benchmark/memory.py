"""Peak memory of this process, as Linux counts it."""

import re
from collections.abc import Callable
from pathlib import Path

RESET = Path("/proc/self/clear_refs")


def can_weigh() -> bool:
    """Return True where the kernel reports the peak memory of a process: on Linux."""
    return RESET.exists()


def peak_of(call: Callable[[], object]) -> float:
    """Call, and return the peak memory beyond what was in use before, in MB."""
    RESET.write_text("5")  # Linux forgets the peak so far
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
