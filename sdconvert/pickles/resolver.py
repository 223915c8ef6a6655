"""The walk from nodes to meaning, and what the rebuild functions ask of it.

A container is made empty, remembered, and filled later from a work list, so depth costs
nothing and a cycle ends where it began. What is the same in the pickle is the same here;
where a call takes a copy of what others have copied already (`again`), that is counted, as
a pickle can name one tuple of a million items a million times. Which global means what is not
known here: that is the table in `rebuild`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..checkpoint import TENSORS, Dict, Object, TensorRef, TypedStorage, Value
from ..dtypes import BY_NAME, DType
from ..errors import UnreadableError
from ..source import MemorySource, Source
from ..tensor import Storage, end_of, strided
from .nodes import Bag, Blob, Call, Global, Node, Pairs, PersId, kind_of

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, Global})
_ODD_KEYS = frozenset({Call, list, Pairs})
_PLAIN_KEYS = ("numpy.core.multiarray.scalar", "_codecs.encode")
# Rebuild calls directly inside each other: parameter(from_type(parameter(tensor))) is 3. This many, in as many
# checkpoints inside each other as Limits.nesting allows, still fit on Python's stack.
_DEPTH = 16
_COPIED = 1_000_000  # Items that may be copied again, beside four for each node that there is.
_FLAGS = 64  # Of a tensor; torch has two, and other devices a few of their own.

LoadStorage = Callable[[Node], Value]
Nested = Callable[[Source], Value]
Rebuild = Callable[["Resolver", Call], Value]


class Resolver:
    """The state of one walk: what became of each node, and the containers still to be filled."""

    def __init__(self, table: Mapping[str, Rebuild], load: LoadStorage, nested: Nested) -> None:
        self.table, self.load, self.nested = table, load, nested
        self.done: dict[int, Value] = {}
        self.todo: list[tuple[Node, Value]] = []
        self.copied = 0
        self.copies: set[int] = set()
        self.no_pairs, self.no_items = Dict(), list[Value]()  # All empty containers, which a byte can make.
        self.encoded: dict[int, bytes] = {}
        self.inner: dict[int, Value] = {}
        self.byte_storages: dict[tuple[int, bool], Storage] = {}
        self.sources: dict[str, str] = {}
        self.packaged: dict[int, Value] = {}
        self.depth = 0

    def resolve(self, root: Node) -> Value:
        result = self.value(root)
        while self.todo:
            node, empty = self.todo.pop()
            self.fill(node, empty)
        return result

    def value(self, node: Node) -> Value:
        """What `node` means; a container may be filled later."""
        kind = type(node)
        if kind in _ATOMS:
            return node
        if kind is PersId:
            return self.persistent(node)
        key = id(node)  # The pickle's root keeps every node alive, so an id stays its own.
        if key in self.done:
            return self.done[key]
        result: Value
        if kind is Call:
            result = self.call(node)
        elif kind is Pairs:
            if not node.flat:
                return self.no_pairs
            result = Dict()
            self.todo.append((node, result))
        elif kind is Blob:
            result = Object("bytes")
        else:  # list, tuple, Bag
            if not (node.items if kind is Bag else node):
                return self.no_items
            result = []
            self.todo.append((node, result))
        self.done[key] = result
        return result

    def again(self, items: Sequence[Node]) -> None:
        """To be called before `items` are copied; UnreadableError when too much has been copied that was before."""
        if not items:
            return
        if id(items) in self.copies:
            self.copied += len(items)
            if self.copied > _COPIED + 4 * len(self.done):
                raise UnreadableError("its calls share what they are called with beyond reason. The file is hostile")
        self.copies.add(id(items))

    def fill(self, node: Node, empty: Value) -> None:
        kind = type(node)
        if kind is Pairs:
            empty.pairs.extend(self.pairs(node.pairs))
        elif kind is Bag:
            empty.extend([self.value(item) for item in node.items])
        elif kind is not Call:
            empty.extend([self.value(item) for item in node])
        elif type(empty) is Dict:
            empty.pairs.extend(self.pairs(node.pairs))
            state = self.state(node)
            if type(state) is Dict:
                empty.attributes = state
        else:
            self.again(node.args)
            empty.args.extend(map(self.value, node.args))
            if node.kwargs is not None:
                empty.args.append(self.value(node.kwargs))
            empty.pairs.extend(self.pairs(node.pairs))
            empty.items.extend(map(self.value, node.items or ()))
            empty.state = self.state(node)

    def pairs(self, pairs: list[tuple[Node, Node]] | None) -> list[tuple[Value, Value]]:
        value = self.value
        return [(key if type(key) not in _ODD_KEYS else self.key(key), value(item)) for key, item in pairs or ()]

    def key(self, key: Node) -> Value:
        """Numbers of numpy, and bytes, are calls as well, and mean as a key what they mean elsewhere.

        UnreadableError for a key that no dict takes."""
        if type(key) is not Call:
            raise UnreadableError("a dict has a list or a dict for a key, which none can have. The file is damaged")
        if type(key.func) is not Global or key.func.key not in _PLAIN_KEYS:
            return key
        return plain if type(plain := self.value(key)) in _ATOMS else key

    def state(self, call: Call) -> Value:
        """The arguments of BUILD as one: dicts are merged, as ``__dict__.update`` would."""
        states = call.states
        if len(states) == 1:
            return self.value(states[0])
        if states and all(type(state) is Pairs for state in states):
            for state in states:
                self.again(state.flat)
            merged = Pairs([item for state in states for item in state.flat])
            result = Dict()
            self.todo.append((merged, result))
            return result
        return [self.value(state) for state in states] or None

    def persistent(self, node: PersId) -> Value:
        pid = node.pid
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":  # ("module", class, file, source)
            if type(pid[1]) is Global and type(pid[3]) is str:
                self.sources[pid[1].full] = pid[3]
            return pid[1] if type(pid[1]) is Global else None
        if (
            type(pid) is tuple and len(pid) == 4 and pid[0] == "reduce_package"
        ):  # Of torch.package: (id, call, arguments)
            if type(pid[1]) is not int or type(pid[3]) is not tuple:
                raise UnreadableError("an object of a package is not numbered, or not made by a call. It is damaged")
            if pid[1] not in self.packaged:
                self.packaged[pid[1]] = self.call(Call(pid[2], pid[3]))
            return self.packaged[pid[1]]
        return self.load(pid)

    def call(self, call: Call) -> Value:
        func = call.func
        if type(func) is PersId:  # The class of a module whose source is in the file.
            func = self.persistent(func)
            named = Call(func, call.args, call.kwargs)
            named.state, named.pairs, named.items = call.state, call.pairs, call.items
            call = named
        if type(func) is Global:
            rebuild = self.table.get(func.key)
            if rebuild is not None:
                if self.depth >= _DEPTH:
                    raise UnreadableError("calls are nested too deeply to be a tensor's. The file is damaged")
                self.depth += 1
                meaning = rebuild(self, call)
                self.depth -= 1
                return meaning
        result = Object(func.full if type(func) is Global else "an unnamed call")
        self.todo.append((call, result))
        return result

    # What the rebuild functions ask for

    def storage(self, node: Node) -> TypedStorage:
        if type(node) is PersId:
            value = self.load(node.pid)
        else:  # Writers that imitate torch's first format put the id itself where the storage belongs.
            value = self.load(node) if type(node) is tuple else self.value(node)
        if type(value) is not TypedStorage:
            raise UnreadableError("a tensor's storage is not one. The file is damaged")
        return value

    def tensor(self, node: Node) -> Value:
        value = self.value(node)
        if type(value) not in TENSORS:
            raise UnreadableError("a tensor is expected, and something else is there. The file is damaged")
        return value

    def whole(self, node: Node, *, big_endian: bool = False) -> Storage:
        """A byte string, wherever it is, as a storage; the same one for the same string."""
        key = (self.identity(node), big_endian)
        if key not in self.byte_storages:
            if type(node) is Blob:
                source, offset, nbytes = node.source, node.offset, node.nbytes
            else:
                data = self.data(node)
                source, offset, nbytes = MemorySource(data), 0, len(data)
            self.byte_storages[key] = Storage(source, offset, nbytes, "inside the pickle", big_endian=big_endian)
        return self.byte_storages[key]

    def identity(self, node: Node) -> int:
        """What tells a byte string from others: of bytes that are spelled as text, the text, which may be
        memoised and asked for many times."""
        if type(node) is Call and type(node.func) is Global and node.func.key == "_codecs.encode" and node.args:
            return id(node.args[0])
        return id(node)

    def data(self, node: Node) -> bytes:
        """A short byte string: as such, as the text Python 2 made of it, or as protocol 2 spells it."""
        if type(node) is bytes:
            return node
        if type(node) is str:
            return self.encode(node)
        if type(node) is Call and type(node.func) is Global and node.func.key in ("_codecs.encode", "builtins.bytes"):
            args = node.args
            if not args:
                return b""
            if type(args[0]) is str and len(args) == 2 and args[1] in ("latin1", "latin-1"):
                return self.encode(args[0])
        raise UnreadableError("bytes are expected, and something else is there. The file is damaged")

    def encode(self, text: str) -> bytes:
        key = id(text)
        if key not in self.encoded:
            try:
                self.encoded[key] = text.encode("latin-1")
            except UnicodeEncodeError:
                raise UnreadableError("a byte string has characters that are no bytes. The file is damaged") from None
        return self.encoded[key]


def untouched(call: Call) -> None:
    """UnreadableError if anything was done to a tensor after it was built: torch would obey, into its memory."""
    if call.pairs or call.items or call.states:
        raise UnreadableError("a tensor is changed after it was built. The file is hostile or damaged")


def arguments(call: Call, least: int, most: int) -> tuple[Node, ...]:
    args = call.args
    if not least <= len(args) <= most:
        name = call.func.full if type(call.func) is Global else "a call"
        raise UnreadableError(f"{name} has {len(args)} arguments. The file is damaged, or newer than this reader")
    assert type(args) is tuple
    return args


def dims(node: Node) -> tuple[int, ...]:
    """A size or stride: a tuple, a list, or torch.Size of one."""
    if type(node) is Call and type(node.func) is Global and node.func.key == "torch.Size" and len(node.args) == 1:
        node = node.args[0]
    if type(node) is list:
        node = tuple(node)
    if type(node) is not tuple:
        raise UnreadableError("a tensor's size or stride is not a tuple. The file is damaged")
    return node


def dtype_of(node: Node) -> DType:
    if type(node) is Global and node.module == "torch" and node.name in BY_NAME:
        return BY_NAME[node.name]
    name = node.full if type(node) is Global else kind_of(node)
    raise UnreadableError(f"{name} is not a dtype of torch that this reader knows")


def _flags(node: Node, dtype: DType) -> tuple[bool, bool]:
    """Whether the stored values are to be conjugated, and negated; other keys are about devices."""
    if type(node) is Call and type(node.func) is Global and node.func.key == "torch.jit._pickle.restore_type_tag":
        node = node.args[0] if node.args else None  # libtorch says of what type the dict is.
    if type(node) is Call and type(node.func) is Global and node.func.key == "collections.OrderedDict":
        pairs: Sequence[Node] = node.pairs or []
    elif type(node) is Pairs:  # Of which many tensors may share one.
        pairs = node.pairs if len(node.flat) <= 2 * _FLAGS else node.flat
    else:
        raise UnreadableError("a tensor's metadata is not a dict. The file is damaged")
    if len(pairs) > _FLAGS:
        raise UnreadableError(f"a tensor's metadata has more than {_FLAGS} entries. The file is damaged or hostile")
    found = {"conj": False, "neg": False}
    for key, value in pairs:
        if type(key) is str and key in found:
            if type(value) is not bool:
                raise UnreadableError(f"a tensor's metadata {key} is not a bool. The file is damaged")
            found[key] = value
        elif value is not False:
            raise UnreadableError("a tensor's metadata says something that this reader does not know")
    if found["neg"] and dtype.kind not in "fc":
        raise UnreadableError(f"a {dtype.name} tensor is marked as negative, which it cannot be. The file is damaged")
    return found["conj"], found["neg"]


def view(typed: TypedStorage, dtype: DType, offset: Node, size: Node, stride: Node, flags: Node = None) -> TensorRef:
    """The tensor that `size` and `stride` cut out of a storage, `offset` elements in."""
    conj, neg = (False, False) if flags is None else _flags(flags, dtype)
    storage, start = typed.storage, typed.offset
    if type(offset) is not int or offset < 0:
        raise UnreadableError("a tensor's storage offset is not a whole number of 0 or more. The file is damaged")
    if start:
        if start % dtype.itemsize:
            raise UnreadableError("a view of a storage does not start at an element. The file is damaged")
        offset += start // dtype.itemsize
    if type(size) is not tuple:
        size = dims(size)
    if type(stride) is not tuple:
        stride = dims(stride)
    tensor = strided(dtype, size, storage, offset, stride, conj, neg)
    end = start + typed.numel * (1 if typed.dtype is None else typed.dtype.itemsize)
    if end < storage.nbytes and end_of(tensor) > end:
        raise UnreadableError(f"a tensor reaches out of its part of storage {storage.name}. The file is damaged")
    return tensor
