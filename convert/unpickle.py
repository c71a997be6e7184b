"""A pickle stream as data: a small stack machine that builds plain values and can call nothing of the stream's choice.

What flows in: bytes, and the table of the globals that may occur. What flows out: strings, numbers, lists, tuples and
dicts, and what the table's own functions make; or a `ReadError` that names the first thing that was not allowed.

This is not a subclass of `pickle.Unpickler`: that one imports what a stream names, resolves extension codes through
a process-wide registry and cache without asking, runs `__setstate__`, and trusts sizes. Here a global is a pair of
strings that is looked up in the table; nothing is ever imported, no attribute is ever fetched, and no opcode exists
that could reach further. Memory stays proportional to the bytes consumed, and no step recurses.

Source of the opcodes: the standard library's `pickletools.py`, which documents each.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dialogpt_jax.convert.weight_file import ReadError, show

# The stream of a GPT-2 large is about 60 KB. One byte can build an empty dict of 64, so this bounds the memory, too.
MAX_STREAM = 8 * 2**20
MAX_LONG = 32  # bytes of an integer; torch's magic number has 10
MAX_LINE = 1000  # bytes of a module's or a function's name

Builder = Callable[[tuple], Any]
Allowed = Mapping[tuple[str, str], Builder | None]


class Global(NamedTuple):
    """The name of a class or function, only a name; `build` is what REDUCE calls instead, None where nothing may be."""

    module: str
    name: str
    build: Builder | None


_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_NUMBERS = {
    pickle.BININT: struct.Struct("<i"),
    pickle.BININT1: struct.Struct("<B"),
    pickle.BININT2: struct.Struct("<H"),
    pickle.BINFLOAT: struct.Struct(">d"),
}
# How many bytes the length takes. Python 2 wrote names as BINSTRING: bytes, in ASCII.
_TEXT = {pickle.BINUNICODE: 4, pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE8: 8}
_BYTES = {pickle.BINBYTES: 4, pickle.SHORT_BINBYTES: 1, pickle.BINBYTES8: 8}
_STRINGS = {pickle.BINSTRING: 4, pickle.SHORT_BINSTRING: 1}
_LONGS = {pickle.LONG1: 1, pickle.LONG4: 4}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_PUTS = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_GETS = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_NAMES = {code.code.encode("latin-1"): code.name for code in pickletools.opcodes}
_EXTENSIONS = {pickle.EXT1: 1, pickle.EXT2: 2, pickle.EXT4: 4}


def unpickle(
    data: memoryview, start: int = 0, *, allowed: Allowed, persistent: Callable[[Any], Any]
) -> tuple[Any, int]:
    """One pickle of the stream.

    Args:
      data: the bytes.
      start: where the pickle begins.
      allowed: (module, name) → the function that REDUCE calls with its tuple of arguments, or None for a global that
        may stand in the stream (a class of storages, a dtype) but not be called.
      persistent: what a persistent id stands for.

    Returns:
      The value, and the position behind the pickle.

    Raises:
      ReadError: a global outside the table (refused by its name), an opcode that no weight file needs, or a stream that
        is damaged or truncated.
    """
    machine = _Machine(data, start, allowed, persistent)
    while not machine.step():
        pass
    if len(machine.stack) != 1 or machine.marks:
        raise ReadError(f"the pickle stream stops with {len(machine.stack)} values on its stack; it is damaged")
    return machine.stack[0], machine.position


class _Machine:
    """The state between two opcodes; `step` does one and says whether it was STOP."""

    def __init__(self, data: memoryview, start: int, allowed: Allowed, persistent: Callable[[Any], Any]) -> None:
        self.data, self.position, self.end = data, start, min(len(data), start + MAX_STREAM)
        self.allowed, self.persistent = allowed, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each MARK
        self.memo: dict[int, Any] = {}

    # What the stream says next.

    def take(self, count: int) -> bytes:
        if count > self.end - self.position:
            raise ReadError(
                f"the pickle stream ends early: {count} bytes wanted at byte {self.position}, "
                f"{self.end - self.position} there; the file is damaged or truncated"
            )
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def take_int(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take_line(self) -> str:
        line = bytes(self.data[self.position : min(self.end, self.position + MAX_LINE)])
        length = line.find(b"\n")
        if length < 0:
            raise ReadError(f"the pickle stream has a name without an end at byte {self.position}; it is damaged")
        self.position += length + 1
        return self.decode(line[:length])

    def decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise ReadError(f"the pickle stream has a name that is not UTF-8 before byte {self.position}") from None

    # What lies on the stack.

    def pop(self) -> Any:
        if not self.stack:
            raise ReadError(f"the pickle stream takes from an empty stack at byte {self.position}; it is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ReadError(f"the pickle stream looks for a mark that is not there at byte {self.position}")
        values, self.stack = self.stack, self.marks.pop()
        return values

    def top(self, kind: type) -> Any:
        # `type is`, not isinstance: nothing here is a subclass, and a Global or a record must not pass as a tuple.
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ReadError(f"the pickle stream fills something that is no {kind.__name__} at byte {self.position}")
        return self.stack[-1]

    def fill_dict(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ReadError(f"the pickle stream has a key without a value at byte {self.position}; it is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Scalars only: hashing a tuple that is nested a million deep would end the process.
            if type(key) not in (str, bytes, int, float, bool, type(None)):
                raise ReadError(f"the pickle stream uses a {type(key).__name__} as a key at byte {self.position}")
            if key in target:
                raise ReadError(f"the name {show(key)} occurs twice; the file is damaged or made to mislead")
            target[key] = value

    def find_global(self, module: Any, name: Any) -> Global:
        if type(module) is not str or type(name) is not str:
            raise ReadError(f"the pickle stream names a global by something that is no text at byte {self.position}")
        if (module, name) not in self.allowed:
            raise ReadError(
                f"refused, and nothing was executed: the pickle asks for {show(f'{module}.{name}')}, which a file of "
                "tensors does not need; where you trust it, load it with torch and save its state_dict() alone"
            )
        return Global(module, name, self.allowed[module, name])

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise ReadError(
                f"refused, and nothing was executed: the pickle calls a {type(function).__name__} "
                f"at byte {self.position}"
            )
        if function.build is None:
            raise ReadError(
                f"refused, and nothing was executed: the pickle calls {show(f'{function.module}.{function.name}')}, "
                "which may be named but not called"
            )
        self.stack.append(function.build(arguments))

    def step(self) -> bool:
        """One opcode; true after STOP."""
        opcode, stack = self.take(1), self.stack
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _NUMBERS:
            stack.append(_NUMBERS[opcode].unpack(self.take(_NUMBERS[opcode].size))[0])
        elif opcode in _TEXT:
            stack.append(self.decode(self.take(self.take_int(_TEXT[opcode]))))
        elif opcode in _STRINGS:
            stack.append(self.decode(self.take(self.take_int(_STRINGS[opcode]))))
        elif opcode in _BYTES:
            stack.append(self.take(self.take_int(_BYTES[opcode])))
        elif opcode in _LONGS:
            size = self.take_int(_LONGS[opcode])
            if size > MAX_LONG:
                raise ReadError(f"the pickle stream has an integer of {size} bytes; at most {MAX_LONG} make sense")
            stack.append(int.from_bytes(self.take(size), "little", signed=True))
        elif opcode in _PUTS or opcode == pickle.MEMOIZE:
            slot = len(self.memo) if opcode == pickle.MEMOIZE else self.take_int(_PUTS[opcode])
            value = self.pop()
            self.memo[slot] = value
            stack.append(value)
        elif opcode in _GETS:
            slot = self.take_int(_GETS[opcode])
            if slot not in self.memo:
                raise ReadError(f"the pickle stream refers to value {slot}, which it never made; it is damaged")
            stack.append(self.memo[slot])
        elif opcode == pickle.EMPTY_DICT:
            stack.append({})
        elif opcode == pickle.EMPTY_LIST:
            stack.append([])
        elif opcode == pickle.MARK:
            self.marks.append(stack)
            self.stack = []
        elif opcode in (pickle.TUPLE, pickle.LIST):
            items = self.pop_to_mark()
            self.stack.append(tuple(items) if opcode == pickle.TUPLE else items)
        elif opcode in _TUPLES:
            self.stack.append(tuple([self.pop() for _ in range(_TUPLES[opcode])][::-1]))
        elif opcode == pickle.DICT:
            items = self.pop_to_mark()
            self.stack.append({})
            self.fill_dict(items)
        elif opcode == pickle.SETITEM:
            value, key = self.pop(), self.pop()
            self.fill_dict([key, value])
        elif opcode == pickle.SETITEMS:
            self.fill_dict(self.pop_to_mark())
        elif opcode == pickle.APPEND:
            value = self.pop()
            self.top(list).append(value)
        elif opcode == pickle.APPENDS:
            items = self.pop_to_mark()
            self.top(list).extend(items)
        elif opcode == pickle.POP:
            self.pop()
        elif opcode == pickle.POP_MARK:
            self.pop_to_mark()
        elif opcode == pickle.GLOBAL:
            module = self.take_line()
            stack.append(self.find_global(module, self.take_line()))
        elif opcode == pickle.STACK_GLOBAL:
            name, module = self.pop(), self.pop()
            stack.append(self.find_global(module, name))
        elif opcode == pickle.REDUCE:
            self.reduce()
        elif opcode == pickle.BUILD:
            # torch puts `_metadata`, the versions of its modules, on the OrderedDict of a state dict. Attributes are
            # never set here; what would set them is dropped.
            self.pop()
            self.top(dict)
        elif opcode == pickle.BINPERSID:
            stack.append(self.persistent(self.pop()))
        elif opcode == pickle.PROTO:
            protocol = self.take_int(1)
            if protocol > pickle.HIGHEST_PROTOCOL:
                raise ReadError(f"the pickle stream claims protocol {protocol}; the newest is 5")
        elif opcode == pickle.FRAME:
            size = self.take_int(8)
            if size > self.end - self.position:
                raise ReadError(f"the pickle stream claims a frame of {size} bytes, more than there are; truncated")
        elif opcode == pickle.STOP:
            return True
        else:
            self.refuse(opcode)
        return False

    def refuse(self, opcode: bytes) -> None:
        """The error for an opcode that reaches for code, or that no writer of weight files uses."""
        subject = f"the opcode {_NAMES.get(opcode, show(opcode))}"
        if opcode in _EXTENSIONS:
            subject += f" (code {self.take_int(_EXTENSIONS[opcode])} of the extension registry)"
        elif opcode == pickle.INST:
            module = self.take_line()
            subject += f" (which asks for {show(f'{module}.{self.take_line()}')})"
        elif opcode in (pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ):
            names = [value for value in self.stack[-3:] if type(value) is Global]
            subject += f" (which makes a {show(f'{names[0].module}.{names[0].name}')})" if names else ""
        raise ReadError(
            f"refused, and nothing was executed: the pickle has {subject} at byte {self.position}; "
            "a file of tensors does not need it, so this one is damaged or made to run code"
        )
