"""What a global's name tells: known and harmless here, unknown, or something no model needs.

Only for the report. Nothing is decided by these lists, because nothing is ever run.
"""

from __future__ import annotations

from ..dtypes import BY_NAME, BY_STORAGE
from .nodes import Global
from .rebuild import REBUILD

_HARMLESS = frozenset(
    {
        "numpy.ndarray",
        "numpy.dtype",
        "torch.Tensor",
        "torch.serialization._get_layout",
        "torch.strided",
        "torch.per_tensor_affine",
        "torch.per_channel_affine",
        "torch.per_channel_affine_float_qparams",
        "torch.device",
        "torch.distributed.tensor.DTensor",
        "torch.nested._internal.nested_tensor.NestedTensor",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "builtins.object",
    }
)
# Modules of Python that run programs, load code, or open files and sockets.
_DANGEROUS_NAMES = """
    os posix nt subprocess sys pty shutil runpy importlib imp code codeop socket ctypes webbrowser platform pip
    commands popen2 bdb pdb timeit trace profile cProfile doctest asyncio multiprocessing threading _thread signal
    urllib http httplib requests ftplib telnetlib smtplib ssl marshal types operator functools pkgutil zipimport
    tempfile pathlib io builtins __builtin__ site atexit _posixsubprocess _interpreters cffi pickle _pickle dill
"""
_DANGEROUS = frozenset(_DANGEROUS_NAMES.split())


def is_known(name: Global) -> bool:
    """Whether the name has a meaning here, or is a class of ``torch.nn``."""
    return (
        name.key in REBUILD
        or name.key in _HARMLESS
        or name.module.startswith(("torch.nn.", "torch.ao.nn."))
        or (name.module in ("torch", "torch.cuda") and (name.name in BY_STORAGE or name.name in BY_NAME))
    )


def is_dangerous(full: str) -> bool:
    """Whether a global of this name could do harm if it were called."""
    return full.partition(".")[0] in _DANGEROUS
