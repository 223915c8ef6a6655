"""Class 1: code that would run in an unpickler, through every opcode and argument slot.

Where the tensors beside it are sound, the conversion goes on and the report names the
code; nothing may be run either way.
"""

from __future__ import annotations

from .case import Case, Tensor, converts, either, rejects
from .legacy import ONE, old_storage, old_tar, stream
from .pickling import (
    BUILD,
    CODE,
    COMMAND,
    EMPTY,
    MARK,
    NONE,
    POP,
    POP_MARK,
    REDUCE,
    blob,
    call,
    dict_of,
    frame,
    get,
    integer,
    list_of,
    literal,
    module,
    name,
    new,
    persistent,
    pickled,
    put,
    short_text,
    storage,
    tensor,
    text,
    torch_names,
    tuple_of,
)
from .zips import FLOATS, Archive, Member, members, torch_zip

W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
T = tensor()
EVIL = call("os.system", COMMAND)


def beside(evil: bytes) -> bytes:
    """An archive of a sound tensor with `evil` as its neighbour."""
    return torch_zip(dict_of(("w", T), ("x", evil)))


def in_tensor(**slots: object) -> bytes:
    return torch_zip(dict_of(("w", tensor(**slots))))  # type: ignore[arg-type]


_STACK = short_text("os") + short_text("system") + b"\x93"
_GADGETS = {
    "os.system": EVIL,
    "posix": call("posix.system", COMMAND),
    "nt": call("nt.system", COMMAND),
    "subprocess": call("subprocess.Popen", COMMAND, 0, None, None, None, None, None, True, True),
    "check-output": call("subprocess.check_output", ["touch", "PWNED"]),
    "eval": call("builtins.eval", CODE),
    "exec": call("builtins.exec", CODE),
    "exec-python2": call("__builtin__.execfile", "PWNED"),
    "compile": call("builtins.exec", call("builtins.compile", CODE, "x", "exec")),
    "import": call("builtins.__import__", "antigravity"),
    "getattr": call(call("builtins.getattr", call("builtins.__import__", "os"), "system"), COMMAND),
    "partial": call(call("functools.partial", name("os.system"), COMMAND)),
    "methodcaller": call(call("operator.methodcaller", "system", COMMAND), call("importlib.import_module", "os")),
    "attrgetter": call(call("operator.attrgetter", "system"), call("importlib.import_module", "os")),
    "map": call("builtins.list", call("builtins.map", name("os.system"), [COMMAND])),
    "reduce": call("functools.reduce", name("os.system"), [COMMAND, COMMAND]),
    "resolve-name": call(call("pkgutil.resolve_name", "os:system"), COMMAND),
    "runpy": call("runpy._run_code", CODE, {}),
    "runpy-path": call("runpy.run_path", "PWNED"),
    "timeit": call("timeit.timeit", CODE, "pass"),
    "profile": call("profile.run", CODE),
    "cprofile": call("cProfile.run", CODE),
    "bdb": call("bdb.Bdb.run", new("bdb.Bdb"), CODE),
    "pdb": call("pdb.run", CODE),
    "code": call("code.interact", None, None, {}),
    "pip": call("pip.main", ["install", "x"]),
    "pty": call("pty.spawn", ["touch", "PWNED"]),
    "webbrowser": call("webbrowser.open", "http://127.0.0.1/"),
    "socket": call("socket.create_connection", ("127.0.0.1", 9)),
    "urlopen": call("urllib.request.urlopen", "http://127.0.0.1/"),
    "ctypes": call("ctypes.CDLL", "PWNED"),
    "marshal": call("types.FunctionType", call("marshal.loads", blob(b"\xe3")), {}),
    "pickle-loads": call("_pickle.loads", blob(pickled(EVIL))),
    "torch-load": call("torch.load", "PWNED"),
    "torch-hub": call("torch.hub.load", "x/y", "z"),
    "torch-eval": call("torch.jit.unsupported_tensor_ops.execWrapper", CODE, {}, {}),
    "collect-env": call("torch.utils.collect_env.run", COMMAND),
    "rpc": call("torch.distributed.rpc.internal.PythonUDF", name("os.system"), (COMMAND,), {}),
    "numpy-load": call("numpy.load", "PWNED", None, True),
    "numpy-runstring": call("numpy.testing._private.utils.runstring", CODE, {}),
    "pandas": call("pandas.read_pickle", "PWNED"),
    "dill": call("dill.loads", blob(b".")),
    "cloudpickle": call("cloudpickle.cloudpickle._make_function", None, {}, "f", None, None),
    "file-open": call("io.open", "PWNED", "w"),
    "file-io": call("io.FileIO", "PWNED", "w"),
    "file-handler": call("logging.FileHandler", "PWNED"),
    "file-write": call("pathlib.Path.touch", call("pathlib.Path", "PWNED")),
    "file-rmtree": call("shutil.rmtree", "nowhere"),
    "file-savetxt": call("numpy.savetxt", "PWNED", []),
    "atexit": call("atexit.register", name("os.system"), COMMAND),
    "signal": call("signal.raise_signal", 9),
    "exit": call("os._exit", 0),
    "sys-path": call("site.addsitedir", "."),
}
_OPCODES = {
    "stack-global": _STACK + tuple_of(COMMAND) + REDUCE,
    "inst": MARK + text(COMMAND) + b"ios\nsystem\n",
    "obj": MARK + name("os.system") + text(COMMAND) + b"o",
    "newobj": new("os.system", COMMAND),
    "newobj-ex": name("os.system") + tuple_of(COMMAND) + dict_of(("a", 1)) + b"\x92",
    "build-setstate": new("a.B") + dict_of(("__setstate__", name("os.system"))) + BUILD + text(COMMAND) + BUILD,
    "build-slots": new("a.B") + tuple_of(NONE, dict_of(("system", name("os.system")))) + BUILD,
    "name-from-memo": short_text("os")
    + put(1)
    + POP
    + short_text("system")
    + put(2)
    + POP
    + get(1)
    + get(2)
    + b"\x93"
    + tuple_of(COMMAND)
    + REDUCE,
    "name-from-string": b"S'os'\nS'system'\n\x93" + tuple_of(COMMAND) + REDUCE,
    "name-dotted": short_text("pathlib") + short_text("os.system") + b"\x93" + tuple_of(COMMAND) + REDUCE,
    "name-spaces": b"cos \nsystem\n" + tuple_of(COMMAND) + REDUCE,
    "popped": EVIL + POP + NONE,
    "pop-marked": MARK + EVIL + EVIL + POP_MARK + NONE,
    "obj-popped": MARK + name("os.system") + text(COMMAND) + b"o" + POP + NONE,
    "memo-only": EVIL + put(9) + POP + integer(1),
    "setitem-on-call": EVIL + MARK + text("a") + text("b") + b"u",
    "append-on-call": new("a.List") + MARK + EVIL + b"e",
    "additems": b"\x8f(" + EVIL + b"\x90",
    "frozenset": MARK + EVIL + b"\x91",
    "deep-in-list": list_of(list_of(list_of(EVIL))),
    "build-state": new("a.B") + dict_of(("x", EVIL)) + BUILD,
    "dup": EVIL + b"2" + b"\x86",
}
_SLOTS = {
    "grad": in_tensor(grad=EVIL),
    "hooks": in_tensor(hooks=EVIL),
    "hooks-filled": in_tensor(hooks=call("collections.OrderedDict") + MARK + integer(1) + name("os.system") + b"u"),
    "location": torch_zip(dict_of(("w", tensor(location=EVIL)))),
}
_BAD_SLOTS = {
    "storage": {"of": EVIL},
    "offset": {"offset": EVIL},
    "size": {"size": EVIL},
    "size-item": {"size": tuple_of(EVIL)},
    "stride": {"stride": EVIL},
    "stride-item": {"stride": tuple_of(EVIL)},
    "metadata": {"metadata": EVIL},
    "pid-class": {"kind": EVIL},
    "pid-class-name": {"kind": "os.system"},
    "pid-key": {"key": EVIL},
    "pid-numel": {"numel": EVIL},
    "pid-whole": {"of": EVIL + b"Q"},
    "pid-list": {"of": list_of("storage", name("torch.FloatStorage"), "0", "cpu", 4) + b"Q"},
}
_TRAINED = {
    "wrapped": torch_zip(dict_of(("state_dict", dict_of(("w", T))), ("epoch", EVIL))),
    "ordered-dict": torch_zip(call("collections.OrderedDict") + MARK + text("w") + T + text("x") + EVIL + b"u"),
    "module-attribute": torch_zip(module(parameters=dict_of(("w", T)), forward=EVIL)),
    "module-class": torch_zip(module("os.system", parameters=dict_of(("w", T)))),
    "protocol-4": Archive(members(b"\x80\x04" + frame(dict_of(("w", T), ("x", EVIL)) + b"."))).build(),
    "second-record": Archive([*members(pickled(dict_of(("w", T)))), Member("archive/evil.pkl", pickled(EVIL))]).build(),
    "storage-bytes-beside": Archive(
        [*members(pickled(dict_of(("w", T)))), Member("archive/data/9", pickled(EVIL))]
    ).build(),
}
_ARRAY = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"C\x01b")
_OBJECTS = _ARRAY + tuple_of(1, (1,), call("numpy.dtype", "O8"), False, list_of(EVIL)) + BUILD
_INNER = call("torch.storage._load_from_bytes", blob(stream(list_of(EVIL), ())))
_INNER_STORAGE = tensor(of=call("torch.storage._load_from_bytes", blob(stream(old_storage()))))
_SOURCE = persistent("module", name("a.B"), "model.py", CODE)
_ESCAPE = "a\x1b[2J\x1b]0;owned\x07\r\n\x9b1m\u202e"

CASES: list[Case] = [
    *(Case(f"exec-{key}", lambda g=g: beside(g), "convert", W) for key, g in _GADGETS.items()),  # type: ignore[misc]
    *(Case(f"exec-op-{key}", lambda g=g: beside(g), "convert", W) for key, g in _OPCODES.items()),  # type: ignore[misc]
    *converts("exec-slot", {key: lambda d=d: d for key, d in _SLOTS.items()}, W),  # type: ignore[misc]
    *rejects("exec-slot", {key: lambda s=s: in_tensor(**s) for key, s in _BAD_SLOTS.items()}),  # type: ignore[misc]
    *converts("exec-in", {key: lambda d=d: d for key, d in _TRAINED.items()}, W),  # type: ignore[misc]
    *converts("exec-named", {"os.system": lambda: beside(EVIL)}, W, says="os.system (!)"),
    *converts("exec-named-popped", {"os.system": lambda: beside(EVIL + POP + NONE)}, W, says="os.system"),
    *converts("exec-named-dotted", {"pathlib": lambda: beside(_OPCODES["name-dotted"])}, W, says="pathlib.os.system"),
    *converts(
        "exec-nested",
        {
            "object-array": lambda: beside(_OBJECTS),
            "legacy-source": lambda: stream(dict_of(("w", tensor(of=old_storage())), ("c", _SOURCE))),
            "legacy-beside": lambda: stream(dict_of(("w", tensor(of=old_storage())), ("c", EVIL))),
            "tar-beside": lambda: old_tar(root=pickled(dict_of(("w", integer(2) + b"Q"), ("x", EVIL)))),
        },
        W,
    ),
    *converts(
        "exec-inner-named",
        {
            "zip": lambda: beside(_INNER),
            "legacy": lambda: stream(dict_of(("w", tensor(of=old_storage())), ("c", _INNER))),
            "tar": lambda: old_tar(root=pickled(dict_of(("w", integer(2) + b"Q"), ("x", _INNER)))),
            "bare": lambda: pickled(dict_of(("w", _INNER_STORAGE), ("x", _INNER))),
            "inner-of-inner": lambda: beside(call("torch.storage._load_from_bytes", blob(stream(_INNER, ())))),
            "beside-storage": lambda: torch_zip(
                dict_of(
                    ("w", T),
                    ("x", call("torch.storage._load_from_bytes", blob(stream(list_of(old_storage(), EVIL))))),
                )
            ),
        },
        W,
        says="os.system (!)",
    ),
    Case(
        "exec-storage-is-pickle",
        lambda: torch_zip(
            dict_of(("w", tensor((len(pickled(EVIL)),), kind="torch.ByteStorage", numel=len(pickled(EVIL))))),
            storages={"0": pickled(EVIL)},
        ),
        "convert",
        {"w": ("U8", (len(pickled(EVIL)),), pickled(EVIL))},
    ),
    *rejects(
        "exec-refused",
        {
            "no-tensors": lambda: torch_zip(EVIL),
            "bare": lambda: pickled(EVIL),
            "bare-protocol-0": lambda: pickled(b"cos\nsystem\n(S'touch PWNED'\ntR", proto=None),
            "broken-tail": lambda: pickled(EVIL)[:-1],
            "second-after-stop": lambda: Archive(members(pickled(dict_of(("w", T))) + pickled(EVIL))).build(),
            "bare-second": lambda: pickled(dict_of(("w", 1))) + pickled(EVIL),
            "ext1": lambda: beside(b"\x82\x01" + EMPTY + REDUCE),
            "ext2": lambda: beside(b"\x83\x01\0" + EMPTY + REDUCE),
            "ext4": lambda: beside(b"\x84\x01\0\0\0" + EMPTY + REDUCE),
            "persid": lambda: torch_zip(dict_of(("w", b"Pos.system\n"))),
            "call-a-string": lambda: beside(text("os.system") + tuple_of(COMMAND) + REDUCE),
            "name-from-call": lambda: beside(call("builtins.str", "os") + text("system") + b"\x93" + EMPTY + REDUCE),
            "tensor-setitem": lambda: torch_zip(dict_of(("w", T + text("a") + EVIL + b"s"))),
            "tensor-append": lambda: torch_zip(dict_of(("w", T + EVIL + b"a"))),
            "tensor-build": lambda: torch_zip(dict_of(("w", T + tuple_of(EVIL) + BUILD))),
            "parameter-set": lambda: torch_zip(
                dict_of(("w", call("torch.nn.parameter.Parameter", T) + tuple_of(storage(), 2, (1,), (1,)) + BUILD))
            ),
            "legacy-magic": lambda: stream(NONE, (), magic=pickled(call("builtins.int", "119547037146038801333356"))),
            "legacy-magic-beside": lambda: stream(
                dict_of(("w", tensor(of=old_storage()))),
                magic=pickled(EVIL + POP + literal(0x1950A86A20F9469CFC6C) + EVIL),
            ),
            "legacy-version": lambda: stream(dict_of(("w", tensor(of=old_storage()))), version=pickled(EVIL)),
            "legacy-system": lambda: stream(dict_of(("w", tensor(of=old_storage()))), system=pickled(EVIL)),
            "legacy-keys": lambda: stream(dict_of(("w", tensor(of=old_storage()))), keys=pickled(EVIL)),
            "legacy-tail": lambda: stream(dict_of(("w", tensor(of=old_storage()))), ONE, tail=pickled(EVIL)),
            "load-from-bytes": lambda: torch_zip(
                dict_of(("w", tensor(of=call("torch.storage._load_from_bytes", blob(pickled(EVIL))))))
            ),
            "frame-straddle": lambda: b"\x80\x04" + frame(b"c", 1) + b"os\nsystem\n" + tuple_of(COMMAND) + b"R.",
            "module-pid-as-storage": lambda: torch_zip(dict_of(("w", tensor(of=_SOURCE)))),
        },
    ),
    *either(
        "exec-odd",
        {
            "called-source": lambda: beside(_SOURCE + EMPTY + REDUCE),
            "called-source-tensor": lambda: torch_zip(
                dict_of(("w", persistent("module", name("torch.FloatTensor"), "f", "s") + EMPTY + REDUCE))
            ),
            "called-source-compiled": lambda: torch_zip(
                dict_of(
                    (
                        "w",
                        persistent("module", name("torch._dynamo.eval_frame.OptimizedModule"), "f", "s")
                        + EMPTY
                        + REDUCE,
                    )
                )
            ),
            "called-storage": lambda: torch_zip(dict_of(("w", storage() + EMPTY + REDUCE))),
            "called-tensor": lambda: torch_zip(dict_of(("w", T + EMPTY + REDUCE))),
            "from-type-evil": lambda: torch_zip(
                dict_of(
                    ("w", call("torch._tensor._rebuild_from_type_v2", name("os.system"), name("a.T"), (COMMAND,), {}))
                )
            ),
            "wrapper-subclass": lambda: torch_zip(dict_of(("w", call("torch._utils._rebuild_wrapper_subclass", EVIL)))),
            "dict-key": lambda: torch_zip(dict_of(("w", T), (EVIL, 1))),
            "tensor-under-evil-key": lambda: torch_zip(dict_of(("w", T), (EVIL, T))),
            "global-escape": lambda: beside(short_text(_ESCAPE) + short_text("x") + b"\x93"),
            "class-per-tensor": lambda: torch_zip(dict_of(*((key, T) for key in torch_names()), ("x", EVIL))),
            "reduce-code-object": lambda: beside(call("types.CodeType", *[0] * 18)),
        },
    ),
]
