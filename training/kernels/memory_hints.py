"""How memory is asked for. Large pages for large tables: a batch's rows lie anywhere in them, and each would cost a walk through the page
tables as well. And what one step frees is kept for the next."""

import ctypes
import mmap
import sys

from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_memory() -> None:
    """Have glibc keep up to a GiB of what this process frees. What goes back to the kernel and is taken again costs a page fault each
    4 KiB: an eighth of a step in bf16 of 2,048 rows. Elsewhere it does nothing."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # blocks below are kept; the largest that it takes
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def on_large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, its memory to be backed by large pages where Linux grants them on request (its default). Ask before the first
    write; a refusal changes nothing but the speed."""
    if sys.platform == "linux" and tensor.device.type == "cpu":
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        num_bytes = tensor.data_ptr() + tensor.nbytes - start
        if num_bytes > 0:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), mmap.MADV_HUGEPAGE
            )
    return tensor
