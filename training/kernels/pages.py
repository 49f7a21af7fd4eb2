"""Large pages for large tables: a batch's rows lie anywhere in them, and each would cost a walk through the page tables as well."""

import ctypes
import mmap
import sys

from torch import Tensor


def on_large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, its memory to be backed by large pages where Linux grants them on request (its default). Ask before the first
    write; a refusal changes nothing but the speed."""
    if sys.platform == "linux" and tensor.device.type == "cpu":
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        num_bytes = tensor.data_ptr() + tensor.nbytes - start
        if num_bytes > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), mmap.MADV_HUGEPAGE)
    return tensor
