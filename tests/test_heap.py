"""Freed memory stays with the process inside the block, and goes back to the kernel after it."""

import platform
import subprocess
import sys
from pathlib import Path

from pc_ewa.heap import freed_memory_kept

# In a process without torch, whose heap has no free memory from before.
CODE = """
import re
from pathlib import Path
from pc_ewa.heap import freed_memory_kept

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = resident()
with freed_memory_kept():
    block = bytearray(b"x") * (150 * 2**20)
    del block
    inside = resident()
print(inside - before, resident() - before)
"""


def test_freed_memory_is_kept_and_given_back():
    if platform.libc_ver()[0] != "glibc" or not Path("/proc/self/status").exists():
        with freed_memory_kept():  # does nothing, and says nothing
            return
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, left = map(float, done.stdout.split())
    assert kept > 140
    assert left < 40
