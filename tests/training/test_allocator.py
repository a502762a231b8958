import subprocess
import sys
from pathlib import Path

import pytest

from training.allocator import HEAP_BLOCK, HEAP_SLACK

pytestmark = pytest.mark.alone

# Frees blocks of 1 to 31 MiB in an order that leaves the largest hole in the middle, and prints what stays, in MiB.
WORKER = """
import sys, torch
from training.allocator import return_freed_memory

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

if sys.argv[1] == "return":
    return_freed_memory()
torch.ones(31 * 2**18)  # from which glibc by itself learns to keep blocks of that size
before = anonymous()
blocks = [torch.ones(size * 2**18) for size in range(5, 31)]
last = torch.ones(2**18)  # at the end of the heap, so that nothing before it can be cut off
used = anonymous()
del blocks
print(used - before, anonymous() - before)
"""


@pytest.mark.parametrize("how", ["return", "keep"])
def test_freed_memory_goes_back_to_the_system(how: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WORKER, how], capture_output=True, text=True, check=True)
    used, left = map(int, done.stdout.split())
    assert used > 400
    # Without it, all of them stay: else this test would show nothing.
    assert left < 20 if how == "return" else left > 400
    assert HEAP_BLOCK < 5 * 2**20 < HEAP_SLACK
