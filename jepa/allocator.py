"""What the process does with memory it no longer uses: keep it, where that is faster, or let go.

Fresh pages cost a CPU more than the layers that fill them.
"""

import ctypes
import gc
import platform
import sys

# names and numbers of mallopt(3), glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30


def keep_memory() -> bool:
    """Let malloc reuse large blocks and give none back; tell whether this system can.

    By default glibc maps every large block anew, and the kernel fills it with zeros page by page:
    5 to 45 % of a training step on a CPU. The peak may grow by what lies between blocks in use.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    return bool(kept and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def free_memory() -> None:
    """Let go of what a trial has left: cycles, and the blocks that the device's allocator keeps."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
