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
    cloudpickle joblib shelve linecache distutils setuptools IPython pexpect paramiko
"""
_DANGEROUS = frozenset(_DANGEROUS_NAMES.split())
# Parts of packages that are otherwise harmless: they load code or files, or evaluate text.
_DANGEROUS_PARTS = (
    "numpy.testing",
    "numpy.f2py",
    "numpy.load",
    "numpy.distutils",
    "pandas.eval",
    "pandas.io",
    "pandas.read_pickle",
    "torch.hub",
    "torch.load",
    "torch.serialization.load",
    "torch.jit.load",
    "torch.package",
    "torch.distributed.rpc",
    "torch.fx",
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.cpp_extension",
    "torch.utils.bottleneck",
    "torch.utils.model_zoo",
)
_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
# What real checkpoints name of those modules, and what does nothing when it is called.
_HARMLESS_PARTS = frozenset(
    [f"pathlib.{kind}Path" for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")]
    + [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS.split()]
    + [f"__builtin__.{name}" for name in ("long", "unicode", "xrange")]  # As protocol 2 calls int, str and range.
    + ["types.SimpleNamespace", "io.BytesIO", "functools.partial", "operator.itemgetter", "threading.Lock"]
)


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
    if full in _HARMLESS_PARTS:
        return False
    return full.partition(".")[0] in _DANGEROUS or f"{full}.".startswith(tuple(f"{part}." for part in _DANGEROUS_PARTS))
