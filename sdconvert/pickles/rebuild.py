"""From nodes to meaning: the globals that a checkpoint is made of, in one table.

What is not in the table stays a name on an `Object`. The argument shapes are those that
torch has written since 0.1 (``torch/_utils.py``, ``torch/_tensor.py``); each is checked,
because a pickle can pass anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..checkpoint import Dict, LostTensor, Object, TensorRef, Value
from ..dtypes import BY_TENSOR_TYPE
from ..errors import UnreadableError
from ..source import SliceSource, Source
from .arrays import ARRAYS
from .encoded import ENCODED
from .nodes import Bag, Call, Global, Node, Pairs
from .quantized import QUANTIZED_MODULES
from .resolver import LoadStorage, Nested, Rebuild, Resolver, arguments, dtype_of, untouched, view
from .subclasses import WRAPPERS


def _no_nesting(source: Source) -> Value:
    raise UnreadableError("a checkpoint inside a checkpoint is not expected here")


def _tensor(r: Resolver, call: Call) -> Value:
    """(storage, offset, size, stride[, requires_grad, backward_hooks[, metadata]])"""
    untouched(call)
    args = arguments(call, 4, 7)
    typed = r.storage(args[0])
    if typed.dtype is None:
        raise UnreadableError("a tensor without a dtype is cut out of an untyped storage. The file is damaged")
    if typed.dtype.kind == "q":
        return LostTensor(f"quantized ({typed.dtype.name})")
    return view(typed, typed.dtype, args[1], args[2], args[3], args[6] if len(args) == 7 else None)


def _tensor_v3(r: Resolver, call: Call) -> Value:
    """(untyped storage, offset, size, stride, requires_grad, backward_hooks, dtype[, metadata])"""
    untouched(call)
    args = arguments(call, 7, 8)
    dtype = dtype_of(args[6])
    return view(r.storage(args[0]), dtype, args[1], args[2], args[3], args[7] if len(args) == 8 else None)


def _parameter(r: Resolver, call: Call) -> Value:
    """(tensor, requires_grad, backward_hooks[, state]); torch 0.1 to 0.3: Parameter(tensor) and a state of flags."""
    if call.pairs or call.items or any(type(state) is tuple and len(state) > 3 for state in call.states):
        untouched(call)  # Of four values torch would make another tensor.
    return r.tensor(arguments(call, 1, 5)[0])


def _from_type(r: Resolver, call: Call) -> Value:
    """(function, type, its arguments[, attributes]): a tensor with attributes, or of a subclass."""
    if call.pairs or call.items:
        untouched(call)
    func, kind, args, *rest = arguments(call, 3, 4)
    state = rest[0] if rest else call.states[0] if call.states else None
    if type(func) is not Global or type(args) is not tuple:
        raise UnreadableError("a tensor subclass is rebuilt by something that has no name. The file is damaged")
    if func.key in WRAPPERS:
        return WRAPPERS[func.key](r, args, state)
    if func.key not in r.table:
        name = kind.full if type(kind) is Global else "a tensor subclass"
        return LostTensor(f"a {name}, rebuilt by {func.full}")
    return r.call(Call(func, args))


def _old_tensor(r: Resolver, call: Call) -> Value:
    """torch.FloatTensor and the like, built empty and given (storage, offset, size, stride)."""
    state = call.states[0] if call.states and len(call.states) == 1 else None
    if type(state) is not tuple or len(state) != 4:
        return Object(call.func.full)
    typed = r.storage(state[0])
    return view(typed, typed.dtype or BY_TENSOR_TYPE[call.func.name], *state[1:])


def _lost(why: str, *, empty: bool = False) -> Rebuild:
    def rebuild(r: Resolver, call: Call) -> Value:
        return LostTensor(why, empty)

    return rebuild


def _load_from_bytes(r: Resolver, call: Call) -> Value:
    """(bytes): a whole torch file inside, whose object is a storage. pickle.dump of a tensor makes these."""
    node = arguments(call, 1, 1)[0]
    key = r.identity(node)
    if key not in r.inner:
        inside = r.whole(node)
        r.inner[key] = r.nested(SliceSource(inside.source, inside.offset, inside.nbytes, "a tensor inside the pickle"))
    return r.inner[key]


def _device_tensor(r: Resolver, call: Call) -> Value:
    """(tensor or numpy array, dtype, device, requires_grad): MPS, XLA and other devices without a storage."""
    value = r.tensor(arguments(call, 3, 4)[0])
    if type(value) is TensorRef:
        dtype = dtype_of(call.args[1])
        if dtype.name != value.dtype.name:
            return LostTensor(f"a {dtype.name} tensor saved as {value.dtype.name}")
        return TensorRef(value.dtype, value.shape, value.pieces, value.conj, value.neg)
    return value


def _mapping(r: Resolver, call: Call) -> Value:
    """OrderedDict and defaultdict: filled by SETITEMS, or in Python 2 by a list of pairs."""
    result = Dict()
    r.again(call.args)
    for arg in call.args:
        r.again(arg.flat if type(arg) is Pairs else arg if type(arg) is list else ())
        for pair in arg if type(arg) is list else ():
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise UnreadableError("a dict is made of something that is not pairs. The file is damaged")
            result.pairs.append((pair[0], r.value(pair[1])))
        if type(arg) is Pairs:
            result.pairs.extend(r.pairs(arg.pairs))
    r.todo.append((call, result))
    return result


def _sequence(r: Resolver, call: Call) -> Value:
    """set, frozenset, list, tuple and torch.Size of one sequence."""
    return r.value(call.args[0]) if len(call.args) == 1 and type(call.args[0]) in (list, tuple, Bag) else []


def _reconstructor(r: Resolver, call: Call) -> Value:
    """(class, base, state): how protocols 0 and 1 make an instance; ``__newobj__`` is the same with the class first."""
    cls = call.args[0] if call.args else None
    result = Object(cls.full if type(cls) is Global else "an unnamed class")
    r.todo.append((call, result))
    return result


def _bytes(r: Resolver, call: Call) -> Value:
    return r.data(call) if not call.states else Object("bytes")


def _graph_module(r: Resolver, call: Call) -> Value:
    """torch.fx: (the module's attributes, imports): the weights are where any module has them."""
    result = Object("torch.fx.graph_module.GraphModule")
    result.state = r.value(call.args[0]) if call.args else None
    return result


def _optimized_module(r: Resolver, call: Call) -> Value:
    """torch.compile: (the module, its options), which calls its only child ``_orig_mod``."""
    result = Object(call.func.full)
    if call.args:
        children = Dict([("_orig_mod", r.value(call.args[0]))])
        result.state = Dict([("_parameters", Dict()), ("_buffers", Dict()), ("_modules", children)])
    return result


_U = "torch._utils."
REBUILD: Mapping[str, Rebuild] = {
    **ARRAYS,
    _U + "_rebuild_tensor": _tensor,
    _U + "_rebuild_tensor_v2": _tensor,
    _U + "_rebuild_tensor_v3": _tensor_v3,
    _U + "_rebuild_parameter": _parameter,
    _U + "_rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _parameter,
    "torch.autograd.variable.Variable": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": _from_type,
    _U + "_rebuild_device_tensor_from_cpu_tensor": _device_tensor,
    _U + "_rebuild_device_tensor_from_numpy": _device_tensor,
    _U + "_rebuild_xla_tensor": _device_tensor,
    **ENCODED,
    **QUANTIZED_MODULES,
    _U + "_rebuild_wrapper_subclass": _lost("a tensor subclass that wraps others, which are not there"),
    _U + "_rebuild_meta_tensor_no_storage": _lost("on the meta device, without values", empty=True),
    "torch.nn.parameter.UninitializedParameter": _lost("not initialised yet (a lazy module's)", empty=True),
    "torch.nn.parameter.UninitializedBuffer": _lost("not initialised yet (a lazy module's)", empty=True),
    "torch.storage._load_from_bytes": _load_from_bytes,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.list": _sequence,
    "builtins.tuple": _sequence,
    "torch.Size": _sequence,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _reconstructor,
    "_codecs.encode": _bytes,
    "builtins.bytes": _bytes,
    "torch.fx.graph_module.reduce_graph_module": _graph_module,
    "torch.fx.graph_module.reduce_package_graph_module": _graph_module,
    "torch._dynamo.eval_frame.OptimizedModule": _optimized_module,
    **{f"torch.{name}": _old_tensor for name in BY_TENSOR_TYPE},
    **{f"torch.cuda.{name}": _old_tensor for name in BY_TENSOR_TYPE},
}


def resolve(root: Node, load: LoadStorage, nested: Nested = _no_nesting) -> tuple[Value, Mapping[str, str]]:
    """The tree that `root` stands for, and the source texts of classes that it carries.

    `load` turns a persistent id into what it names, a `TypedStorage` as a rule; `nested`
    reads a whole checkpoint inside a byte string and gives its root.
    """
    resolver = Resolver(REBUILD, load, nested)
    return resolver.resolve(root), MappingProxyType(resolver.sources)
