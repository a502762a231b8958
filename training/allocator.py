"""How the C library hands out memory: what is freed goes back to the system, so that a rank's peak can be computed.

By itself glibc learns from each large block that is freed to keep blocks of that size, up to 32 MiB. Weights that are
gathered and released, gradients and activations of ZeRO-3 come in every size; kept, they lie beside each other, and a
rank on a CPU held a fifth more than was ever in use. GPU memory is not affected.
"""

import ctypes
import os

# Larger blocks are mapped by themselves. Smaller ones would cost time: a page that comes new from the system is zeroed.
HEAP_BLOCK = 2 * 2**20
# What is free at the end of the heap stays up to here. By itself glibc keeps twice its largest block: less, and every
# block that is freed there would be given back and asked for again, ten times as slow.
HEAP_SLACK = 64 * 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def return_freed_memory() -> None:
    """Give large blocks of this process back to the system when they are freed; a user's own setting stays."""
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not there in other C libraries
        mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK)
        mallopt(M_TRIM_THRESHOLD, HEAP_SLACK)
