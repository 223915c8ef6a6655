"""The bytes of a tensor on the host, without numpy."""

from __future__ import annotations

import ctypes

import torch

_WRITABLE = 0x200  # PyBUF_WRITE
_VIEW = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """All bytes of a contiguous tensor on the host, writable. The tensor must outlive them."""
    return view_of(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def view_of(address: int, nbytes: int) -> memoryview:
    """`nbytes` bytes of this process from `address` on, writable, for as long as whoever owns them lives."""
    if not nbytes:
        return memoryview(bytearray())
    view: memoryview = _VIEW(address, nbytes, _WRITABLE)
    return view
