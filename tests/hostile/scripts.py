"""Class 6 again: TorchScript archives, whose source is text to be searched and never run."""

from __future__ import annotations

from .case import Case, Tensor, converts, either
from .pickling import BUILD, POP, call, dict_of, get, list_of, literal, name, pickled, put, tensor, tuple_of
from .zips import FLOATS, Archive, Member

W: dict[str, Tensor] = {"w": ("F32", (4,), FLOATS)}
T = tensor()
EVIL = "import os\nos.system('touch PWNED')\n"
SOUND = 'class M(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n  w : Tensor\n'


def instance(state: object, cls: str = "__torch__.M") -> bytes:
    return name(cls) + b")\x81" + literal(state) + BUILD


def script(root: bytes, code: str | bytes = SOUND, record: str = "code/__torch__.py", method: int = 0) -> bytes:
    """A TorchScript archive of the pickle fragment `root` and one file of source."""
    source = code if isinstance(code, bytes) else code.encode()
    return Archive(
        [
            Member("a/data.pkl", pickled(root)),
            Member("a/constants.pkl", pickled(tuple_of())),
            Member("a/data/0", FLOATS),
            Member(f"a/{record}", source, method=method),
            Member("a/version", b"3\n"),
        ]
    ).build()


ONE = instance({"w": T})


def shared(what: bytes, index: int = 5) -> bytes:
    return what + put(index) + POP


def _parameters(count: int) -> str:
    return "class M(Module):\n  __parameters__ = [" + "".join(f'"p{i}", ' for i in range(count)) + "]\n"


CASES: list[Case] = [
    *converts(
        "script",
        {
            "plain": lambda: script(ONE),
            "evil-source": lambda: script(ONE, EVIL + SOUND + EVIL),
            "evil-attribute": lambda: script(instance({"w": T, "x": call("os.system", "touch PWNED")})),
            "evil-debug": lambda: script(ONE, SOUND + "  def forward(self):\n    return os.system('touch PWNED')\n"),
        },
        W,
    ),
    *either(
        "script",
        {
            "no-class": lambda: script(ONE, EVIL),
            "empty-source": lambda: script(ONE, ""),
            "no-source": lambda: script(ONE, SOUND, "code/other.py"),
            "not-utf8": lambda: script(ONE, b"\xff\xfe" + SOUND.encode()),
            "nul": lambda: script(ONE, SOUND.encode() + bytes(1000)),
            "class-twice": lambda: script(ONE, SOUND + SOUND.replace('"w"', '"v"')),
            "list-twice": lambda: script(ONE, SOUND + '  __parameters__ = ["v", ]\n'),
            "list-open": lambda: script(ONE, SOUND.replace("]", "")),
            "name-escape": lambda: script(instance({"\x1b[2J": T}), SOUND.replace('"w"', '"\x1b[2J"')),
            "name-dot": lambda: script(instance({"a.b": T}), SOUND.replace('"w"', '"a.b"')),
            "parameter-int": lambda: script(instance({"w": 5})),
            "parameter-list": lambda: script(instance({"w": [T]})),
            "parameter-module": lambda: script(instance({"w": ONE})),
            "missing": lambda: script(instance({})),
            "cycle": lambda: script(name("__torch__.M") + b")\x81" + put(5) + dict_of(("w", T), ("m", get(5))) + BUILD),
            "dag": lambda: script(
                shared(instance({"w": 1})) + shared(instance({"a": get(5), "b": get(5)})) * 60 + get(5)
            ),
            "quotes": lambda: script(ONE, SOUND.replace('"w"', '\\"' * 150_000)),
            "brackets": lambda: script(ONE, SOUND.replace('"w"', "]" * 300_000 + "x")),
            "lists-many": lambda: script(ONE, SOUND + '  __buffers__ = ["x"]\n' * 30_000),
            "classes-many": lambda: script(ONE, SOUND + "class A(B):\n" * 60_000),
            "classes-bomb": lambda: script(ONE, "class A(B):\n" * 5_000_000, method=8),
            "spaces-bomb": lambda: script(ONE, " " * (60 << 20), method=8),
            "parameters-times-instances": lambda: script(
                instance({f"m{i}": instance({}) for i in range(8000)}), _parameters(20_000)
            ),
            "state-shared": lambda: script(
                shared(dict_of(*((f"s{i}", None) for i in range(30_000)), ("w", T)))
                + instance({"x": list_of(*[instance(get(5))] * 5000), "w": T})
            ),
            "children-shared": lambda: script(
                shared(dict_of(*((f"s{i}", None) for i in range(30_000)), ("w", T)))
                + instance({f"m{i}": instance(get(5)) for i in range(5000)})
            ),
            "record-respelled": lambda: script(
                instance(
                    {
                        f"m{i}": instance(
                            {"w": T}, "__torch__" + "".join("./"[i >> k & 1] + "a" for k in range(11)) + ".M"
                        )
                        for i in range(1 << 11)
                    },
                    "__torch__" + ".a" * 11 + ".M",
                ),
                SOUND + "x = 1\n" * 50_000,
                "code/__torch__" + "/a" * 11 + ".py",
            ),
            "parent-record": lambda: script(instance({"w": T}, "__torch__....data.M")),
            "constants-evil": lambda: Archive(
                [
                    Member("a/data.pkl", pickled(ONE)),
                    Member("a/constants.pkl", pickled(call("os.system", "touch PWNED"))),
                    Member("a/data/0", FLOATS),
                    Member("a/code/__torch__.py", SOUND.encode()),
                ]
            ).build(),
            "bad-checksum": lambda: Archive(
                [
                    Member("a/data.pkl", pickled(ONE)),
                    Member("a/data/0", FLOATS),
                    Member("a/code/__torch__.py", SOUND.encode(), local={"crc": 1}, central={"crc": 1}),
                ]
            ).build(),
        },
    ),
]
