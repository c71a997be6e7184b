"""What one pass of a program's loop does with memory: the compiled text in; bytes read and written, and arrays made, out.

    compiled.as_text() ─the body of the loop that no number ends→ each instruction ─→ LoopPass

XLA's own count of bytes has the whole program, this loop's body once, and holds what lies on the chip to be memory. Here a
type says where an array lies: `S(1)` is a TPU's memory on the chip, without a mark it is the device's large one. It is
counted as it lies there, in whole tiles: f32[768,64,64] in tiles of 8×128 takes the room of f32[768,64,128]. Of what is
sliced, gathered, or written in place, the part alone counts, inside a fusion too. A weight that stays on the chip from step
to step is not read again.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator

from dialogpt_jax.run.compiled_text import BODY, Instruction, Program, array_bytes, parse, trips_of, walk

PREFETCH, SPILL = "prefetch", "spill"  # copies from memory to the chip, and back to make room there
MOVES = (SPILL, "copy", "transpose", "convert", "reshape")  # what makes another array of one, and nothing new
_NO_WORK = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "replica-id")
_PARTS = ("slice", "dynamic-slice", "gather")
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is the part that is written
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_CALLED = re.compile(r"\b(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Made:
    """An array that an instruction gives; of a fusion, `operation` is what makes it."""

    operation: str
    shape: tuple[int, ...]
    bytes: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class LoopPass:
    """One pass of a loop.

    Attributes:
      read, written: bytes of the device's memory.
      held: bytes on the chip that stay there from pass to pass, mostly weights: they are not read again.
      made: every array that an instruction gives.
    """

    read: int
    written: int
    held: int
    made: tuple[Made, ...]

    def moves(self, weights: Collection[int], caches: Collection[int]) -> dict[str, int]:
        """How often an array of a weight's number of elements is made, by whatever but a prefetch, or one of a cache's is
        written to memory without any new slot in it; by operation."""
        sized = [(one, math.prod(one.shape)) for one in self.made]
        of_weights = [one for one, size in sized if size in weights and one.operation != PREFETCH]
        of_caches = [one for one, size in sized if size in caches and one.in_memory and one.operation in MOVES]
        return dict(Counter(one.operation for one in of_weights + of_caches))


def loop_pass(text: str) -> LoopPass:
    """Of the loop that runs until its condition ends it, as the one over tokens does.

    Raises:
      ValueError: the program has none, or several.
    """
    program, entry = parse(text)
    loops = [one for _, one, *_ in walk(program, entry) if one.opcode == "while" and trips_of(program, one) is None]
    if len(loops) != 1:
        raise ValueError(f"the program has {len(loops)} loops that no number ends; one is read")
    body = BODY.search(loops[0].rest)
    held = sum(leaf.bytes for leaf in _leaves(loops[0].type) if not leaf.in_memory)
    read = written = 0
    made: list[Made] = []
    for instruction, types, times in _steps(program, body[1] if body else "", 1):
        own_read, own_written = _traffic(program, instruction, types)
        read, written = read + times * own_read, written + times * own_written
        made += _arrays(program, instruction, types)
    return LoopPass(read, written, held, tuple(made))


def _steps(program: Program, name: str, times: int) -> Iterator[tuple[Instruction, dict[str, str], int]]:
    """Each instruction that runs by itself, with the types of what stands beside it, and how often it runs."""
    block = program.get(name, [])
    types = {one.name: one.type for one in block}
    for one in block:
        if one.opcode == "while":
            body = BODY.search(one.rest)
            yield from _steps(program, body[1] if body else "", times * (trips_of(program, one) or 1))
        elif one.opcode in ("call", "conditional"):
            listed = _CALLED.findall(one.rest)
            listed += [name for names in _BRANCHES.findall(one.rest) for name in re.findall(r"[\w.\-]+", names)]
            for inner in listed:
                yield from _steps(program, inner, times)
        elif one.opcode not in _NO_WORK and not one.opcode.endswith("-done") and "Bitcast" not in _target(one):
            yield one, types, times


def _traffic(program: Program, one: Instruction, types: dict[str, str]) -> tuple[int, int]:
    """Bytes of memory that an instruction reads and writes."""
    operands = [types.get(name, "") for name in _operands(one)]
    results = _leaves(one.type)
    if one.opcode.endswith("-start"):  # copy: (to, from, context); slice: ((from), to, context)
        moved = results[0 if one.opcode == "copy-start" else -2]
        from_memory = any(_in_memory(operand) for operand in operands)
        return moved.bytes * from_memory, moved.bytes * moved.in_memory
    inside = _CALLS.search(one.rest) if one.opcode == "fusion" else None
    read = 0
    for place, operand in enumerate(operands):
        if _in_memory(operand):
            part = _taken(program, inside[1], place) if inside else _taken_by(one, place)
            read += _held(operand) if part is None else part
    parts = _written(program, inside[1]) if inside else [_written_by(one, types)]
    parts = parts if len(parts) == len(results) else [None] * len(results)
    pairs = zip(results, parts, strict=True)
    return read, sum(leaf.bytes if part is None else part for leaf, part in pairs if leaf.in_memory)


def _taken_by(one: Instruction, place: int) -> int | None:
    """Bytes of an operand that an instruction reads; `None`: all of it."""
    if place == 0 and one.opcode in _PARTS:
        return _held(one.type)
    return 0 if place == 0 and one.opcode in _IN_PLACE else None


def _taken(program: Program, fused: str, place: int) -> int | None:
    """The same of a fusion's operand, by what its computation does with the parameter."""
    taken, given = _used(program, fused, place)
    return None if given else taken


def _used(program: Program, fused: str, place: int) -> tuple[int | None, bool]:
    """What a fusion's own instructions take of an operand, and whether it is also given out as it is."""
    block = program.get(fused, [])
    names = {one.name for one in block if one.opcode == "parameter" and one.rest.startswith(f"{place})")}
    total = 0
    for one in block:
        called = _CALLS.search(one.rest) if one.opcode == "fusion" else None
        for at, name in enumerate(_operands(one)):
            if name not in names:
                continue
            if one.opcode == "bitcast":
                names.add(one.name)
                continue
            part, given = _used(program, called[1], at) if called else (_taken_by(one, at), False)
            if part is None:
                return None, False
            total += part
            if given:
                names.add(one.name)
    return total, any(one.root and one.name in names for one in block)


def _written_by(one: Instruction, types: dict[str, str]) -> int | None:
    """Bytes of the result that an instruction writes; `None`: all of it."""
    if one.opcode not in _IN_PLACE:
        return None
    return _held(types.get(_operands(one)[_IN_PLACE[one.opcode]], ""))


def _written(program: Program, fused: str) -> list[int | None]:
    """The same of each result of a fusion."""
    types = {one.name: one.type for one in program.get(fused, [])}
    parts: list[int | None] = []
    for one in _roots(program, fused):
        called = _CALLS.search(one.rest) if one.opcode == "fusion" else None
        parts += _written(program, called[1]) if called else [_written_by(one, types)]
    return parts


def _arrays(program: Program, one: Instruction, types: dict[str, str]) -> list[Made]:
    """What an instruction gives, each array with the operation that makes it."""
    leaves = _leaves(one.type)
    if one.opcode.endswith("-start"):
        from_memory = any(_in_memory(types.get(name, "")) for name in _operands(one))
        name = {(True, False): PREFETCH, (False, True): SPILL}.get((from_memory, leaves[0].in_memory), "copy")
        return [dataclasses.replace(leaves[0], operation=name)] if one.opcode == "copy-start" else []
    operations = _operations(program, one)
    operations = operations if len(operations) == len(leaves) else operations[:1] * len(leaves)
    return [dataclasses.replace(leaf, operation=name) for leaf, name in zip(leaves, operations, strict=True)]


def _operations(program: Program, one: Instruction) -> list[str]:
    called = _CALLS.search(one.rest) if one.opcode == "fusion" else None
    if called is None:
        return [one.opcode]
    return [name for root in _roots(program, called[1]) for name in _operations(program, root)]


def _roots(program: Program, name: str) -> list[Instruction]:
    """What makes each result of a computation, seen through bitcasts."""
    block = program.get(name, [])
    by_name = {one.name: one for one in block}
    root = next((one for one in block if one.root), None)
    if root is None:
        return []
    found = []
    for one in [by_name[name] for name in _operands(root)] if root.opcode == "tuple" else [root]:
        while one.opcode == "bitcast" and (operands := _operands(one)) and operands[0] in by_name:
            one = by_name[operands[0]]
        found.append(one)
    return found


def _operands(one: Instruction) -> list[str]:
    """The names between the parentheses behind the opcode."""
    depth, end = 1, 0
    while end < len(one.rest) and depth:
        depth += (one.rest[end] == "(") - (one.rest[end] == ")")
        end += 1
    return _OPERAND.findall(one.rest[:end])


def _target(one: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', one.rest)
    return found[1] if found else ""


def _leaves(kind: str) -> list[Made]:
    """The arrays of a type, as they lie."""
    found = []
    for dtype, shape, layout in _ARRAY.findall(kind):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        in_memory = re.search(r"S\([1-9]", layout) is None
        found.append(Made("", sizes, array_bytes(dtype, _padded(sizes, layout)), in_memory))
    return found


def _padded(sizes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Sizes in whole tiles, from the outermost axis in memory to the innermost."""
    order, tile = re.match(r"[\d,]*", layout), re.search(r"T\(([\d,]+)\)", layout)
    if order is None or tile is None or not sizes:
        return sizes
    lying = [sizes[int(axis)] for axis in reversed(order[0].split(","))]
    tiles = [int(size) for size in tile[1].split(",")][-len(lying) :]
    return *lying[: -len(tiles)], *(-(-n // t) * t for n, t in zip(lying[-len(tiles) :], tiles, strict=True))


def _in_memory(kind: str) -> bool:
    return any(leaf.in_memory for leaf in _leaves(kind))


def _held(kind: str) -> int:
    return sum(leaf.bytes for leaf in _leaves(kind))
