"""The few objects that a torch file of tensors is made of, as inert records.

What flows in: the names and arguments that a pickle stream carries. What flows out: `Storage` and `Tensor` records,
which say where the numbers lie, and the state dict among whatever else was saved. No number is read here, and nothing
of torch is imported; the functions of the same names in torch's `_utils.py` say what the arguments mean.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.convert.unpickle import Allowed, Builder, Global
from dialogpt_jax.convert.weight_file import NUMPY_DTYPES, ReadError, show

# torch's names of its storage classes, and of its dtypes.
_STORAGE_NAMES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
_STORAGE_NAMES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
STORAGES = {f"{name}Storage": NUMPY_DTYPES[numpy] for name, numpy in _STORAGE_NAMES.items()}
_SHORT = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32", "short": "int16"}
TORCH_DTYPES = NUMPY_DTYPES | {short: NUMPY_DTYPES[name] for short, name in _SHORT.items()}
# What people name the state dict when they save it beside an epoch and an optimizer; "module" is DeepSpeed's.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
MAX_NESTING = 4
PLAIN = (str, int, float, bool, type(None))


class Storage(NamedTuple):
    """A block of numbers: its key in the file, dtype (None: bytes, the tensor says which), and number of elements.

    `start` and `length` select a view of the block, which old files can have; None is all of it.
    """

    key: str
    dtype: np.dtype | None
    elements: int
    start: int = 0
    length: int | None = None


class Tensor(NamedTuple):
    """A tensor before its numbers are looked at; sizes, strides and offset, in elements, are still unchecked."""

    storage: Storage
    dtype: np.dtype
    offset: Any
    shape: tuple
    strides: tuple


def find_storage(saved_id: Any) -> Storage:
    """The storage that a persistent id stands for.

    The forms are ('storage', type, key, location, count), and with view metadata behind it, None or (key, start,
    length), in the older format. The location, a device, does not matter.

    Raises:
      ReadError: any other persistent id.
    """
    match saved_id:
        case ("storage", Global() as kind, str(key), _, int(count)) if _is_storage(kind):
            return _checked(Storage(key, STORAGES.get(kind.name), count))
        case ("storage", Global() as kind, str(key), _, int(count), None) if _is_storage(kind):
            return _checked(Storage(key, STORAGES.get(kind.name), count))
        case ("storage", Global() as kind, str(key), _, int(count), (_, int(start), int(length))) if _is_storage(kind):
            return _checked(Storage(key, STORAGES.get(kind.name), count, start, length))
        case ("module", Global() as kind, *_):
            raise ReadError(f"holds a whole module, {show(kind.name)}; save its state_dict() instead")
    raise ReadError("the pickle stream refers to something that is no storage of numbers; it is damaged")


def _is_storage(kind: Global) -> bool:
    return kind.name in STORAGES or kind.name == "UntypedStorage"


def _checked(storage: Storage) -> Storage:
    length = storage.elements if storage.length is None else storage.length
    if (
        not 0 <= storage.elements < 2**59
        or storage.start < 0
        or length < 0
        or storage.start + length > storage.elements
    ):
        raise ReadError(
            f"storage {show(storage.key)} claims {show(storage.elements)} elements, of which {show(length)} from "
            f"{show(storage.start)} on are used; the file is damaged"
        )
    return storage


def _misuse(name: str, arguments: tuple) -> ReadError:
    return ReadError(f"the pickle calls {name} with {len(arguments)} arguments that make no tensor; it is damaged")


def _rebuild_tensor(arguments: tuple) -> Tensor:
    match arguments:
        case (Storage(dtype=np.dtype() as dtype) as storage, offset, tuple(shape), tuple(strides)):
            return Tensor(storage, dtype, offset, shape, strides)
    raise _misuse("_rebuild_tensor", arguments)


def _rebuild_tensor_v2(arguments: tuple) -> Tensor:
    match arguments:
        case (storage, offset, shape, strides, _, _) | (storage, offset, shape, strides, _, _, None):
            return _rebuild_tensor((storage, offset, shape, strides))
        case (storage, offset, shape, strides, _, _, dict(marks)) if not any(map(bool, marks.values())):
            return _rebuild_tensor((storage, offset, shape, strides))
        case (_, _, _, _, _, _, dict()):
            raise ReadError("holds a tensor whose signs or conjugates are still to be applied; save a .clone() of it")
    raise _misuse("_rebuild_tensor_v2", arguments)


def _rebuild_tensor_v3(arguments: tuple) -> Tensor:
    # The storage is bytes, and the dtype is the seventh argument: torch's form for dtypes without a storage class.
    match arguments:
        case (Storage(dtype=None) as storage, offset, tuple(shape), tuple(strides), _, _, Global(name=name), *rest):
            if name in TORCH_DTYPES and not any(rest):
                return Tensor(storage, TORCH_DTYPES[name], offset, shape, strides)
    raise _misuse("_rebuild_tensor_v3", arguments)


def _rebuild_parameter(arguments: tuple) -> Tensor:
    if len(arguments) in (3, 4) and type(arguments[0]) is Tensor:  # 4: with a state of Python attributes
        return arguments[0]
    raise _misuse("_rebuild_parameter", arguments)


def _rebuild_from_type(arguments: tuple) -> Tensor:
    # (function, class, arguments, attributes): a Parameter or a tensor with attributes; those are dropped.
    match arguments:
        case (Global() as function, Global(build=None), tuple(inner), _) if function.build in _REBUILDERS.values():
            return _REBUILDERS[function.name](inner)
    raise _misuse("_rebuild_from_type", arguments)


def _ordered_dict(arguments: tuple) -> dict:
    # Python 2 saved an OrderedDict as a list of [key, value] pairs; Python 3 fills an empty one.
    match arguments:
        case ():
            return {}
        case (list(pairs),) if all(type(p) in (list, tuple) and len(p) == 2 and type(p[0]) is str for p in pairs):
            if len({pair[0] for pair in pairs}) == len(pairs):
                return dict(pairs)
    raise ReadError("the pickle makes an OrderedDict of something that is no list of names and values; it is damaged")


def _size(arguments: tuple) -> tuple:
    match arguments:
        case (tuple(sizes),) | (list(sizes),):
            return tuple(sizes)
    raise _misuse("torch.Size", arguments)


def _device(arguments: tuple) -> None:
    """Where something lay; stands among the options of a training run, and says nothing here."""


_REBUILDERS: dict[str, Callable[[tuple], Tensor]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor_v2,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
}


def _list_allowed() -> Allowed:
    allowed: dict[tuple[str, str], Builder | None] = {("collections", "OrderedDict"): _ordered_dict}
    allowed |= {("torch._utils", name): build for name, build in _REBUILDERS.items()}
    allowed |= {("torch._tensor", f"_rebuild_from_type{version}"): _rebuild_from_type for version in ("", "_v2")}
    allowed |= {("torch", "Size"): _size, ("torch", "device"): _device}
    allowed |= dict.fromkeys([("torch", "Tensor"), ("torch.nn.parameter", "Parameter")])
    allowed |= dict.fromkeys([("torch", "UntypedStorage"), ("torch.storage", "UntypedStorage")])
    allowed |= dict.fromkeys((module, name) for module in ("torch", "torch.cuda") for name in STORAGES)
    allowed |= dict.fromkeys(("torch", name) for name in TORCH_DTYPES)
    return allowed


# Everything that may be named in a file, and what stands in for it when it is called.
ALLOWED: Allowed = _list_allowed()


def find_state_dict(value: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The dict of tensors in what was saved, and what stands beside the tensors as plain values.

    A state dict may be the top level, or lie in it under a name of `WRAPPERS` or as the only dict that holds tensors.

    Raises:
      ReadError: no dict of tensors, several, or one with names or values that are not a state dict's.
    """
    state = value
    metadata: dict[str, Any] = {}
    for _ in range(MAX_NESTING):
        if type(state) is not dict:
            raise ReadError(f"holds a {type(state).__name__}, not a dict of tensors; save a model's state_dict()")
        metadata = {
            name: plain for name, plain in state.items() if type(name) is str and type(plain) in PLAIN
        } | metadata
        chosen = _choose(state)
        if chosen is None:
            return _keep_tensors(state), metadata
        state = state[chosen]
    raise ReadError(f"holds no dict of tensors within {MAX_NESTING} levels; save a model's state_dict() alone")


def _choose(state: dict) -> Any:
    """The key under which to look further, or None where the dict itself is the state dict."""
    dicts = {key: value for key, value in state.items() if type(value) is dict}
    # By identity: a hostile file can name one large dict a million times.
    having = {id(value) for value in {id(value): value for value in dicts.values()}.values() if _has_tensors(value)}
    holding = [key for key, value in dicts.items() if id(value) in having]
    preferred = [key for key in holding if key in WRAPPERS]
    if _has_tensors(state) and not preferred:
        return None
    deeper = [key for key in dicts if key in WRAPPERS] or list(dicts)
    candidates = preferred or holding or deeper
    if len(candidates) == 1:
        return candidates[0]
    what = "several dicts of tensors" if holding else "no dict of tensors"
    raise ReadError(f"holds {what} under {show(list(state))}; save the model's state_dict() alone")


def _has_tensors(value: dict) -> bool:
    return any(type(entry) is Tensor for entry in value.values())


def _keep_tensors(state: dict) -> dict[str, Tensor]:
    """The tensors of a state dict; what cannot hold one may stand beside them, a tensor elsewhere may not be lost."""
    seen: set[int] = set()
    for name, value in state.items():
        if type(value) is Tensor and type(name) is not str:
            raise ReadError(f"the dict of tensors has the name {show(name)}, which is no text; save a state_dict()")
        if type(value) is not Tensor and _reaches_tensor(value, seen):
            raise ReadError(f"holds tensors, and more of them inside {show(name)}; save the model's state_dict() alone")
    return {name: value for name, value in state.items() if type(value) is Tensor}


def _reaches_tensor(value: Any, seen: set[int]) -> bool:
    waiting = [value]  # a stack and not recursion: a hostile file may nest deeply, or in a circle
    while waiting:
        item = waiting.pop()
        if type(item) is Tensor or type(item) is Storage:
            return True
        if type(item) in (dict, list, tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if type(item) is dict else item)
    return False
