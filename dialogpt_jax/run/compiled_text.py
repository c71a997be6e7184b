"""What a compiled program does between devices and in sequence: XLA's text in, collectives and loops out.

    compiled.as_text() ─parse→ computations ─from the entry, through calls and loops→ collectives, loops

Only what is stable in that text is read: computations in braces, and on each line `name = type opcode(…), attributes`. An
instruction in a loop counts as often as the loop runs, where the text says how often; else once, and is marked.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole array: what a gather gives, what a reduction takes, on each device.
      group: devices that take part in it together.
      times: how often it runs in one run of the program.
      certain: false where it is in a loop that does not say how often it runs: then `times` is for one pass.
      source: where it comes from in the program, or "".
    """

    kind: str
    bytes: int
    group: int
    times: int
    certain: bool
    source: str = ""

    @property
    def wire_bytes(self) -> float:
        """What a device sends in one run, by the ring algorithm: (g−1)/g of the array, twice for an all-reduce."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        return self.bytes * (self.group - 1) / self.group * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop that XLA runs in sequence.

    Attributes:
      trips: how often its body runs each time, `None` where the text does not say (a loop until a condition).
      depth: 0 outside other loops.
      source: where it comes from in the program, or "".
    """

    trips: int | None
    depth: int
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes
    root: bool  # what its computation gives


Program = dict[str, list[Instruction]]  # computations by their name

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLS = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=\w*\[([^\]]*)\] *\{([^}]*)\}")  # from jax 0.12 on: the axes of a named mesh
_CHAIN = re.compile(r'chain_id="(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


def collectives(text: str, *, devices: int) -> list[Collective]:
    """Every collective of more than one device, in no particular order.

    Args:
      text: `compiled.as_text()`.
      devices: of the program: the group of a collective that names none.
    """
    program, entry = parse(text)
    found, chains = [], set()
    for name, instruction, times, certain, _ in walk(program, entry):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        chain = _CHAIN.search(instruction.rest)
        if chain:  # on TPU, the pieces of one collective that was spread over several fusions
            if (kind, chain[1]) in chains:
                continue
            chains.add((kind, chain[1]))
        group = _group(instruction.rest, devices)
        size = _bytes(instruction)
        if kind == "reduce-scatter":
            size *= group
        elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # TPU's form of it: a fused all-reduce and slice
        if group > 1:
            found.append(Collective(kind, size, group, times, certain, _source(instruction)))
    return found


def loops(text: str) -> list[Loop]:
    """Every `while` of the program that runs more than once, outer ones first."""
    program, entry = parse(text)
    found = []
    for _, instruction, _, _, depth in walk(program, entry):
        if instruction.opcode == "while":
            trips = trips_of(program, instruction)
            if trips is None or trips > 1:
                found.append(Loop(trips, depth, _source(instruction)))
    return found


def parse(text: str) -> tuple[Program, str]:
    """The computations of a program, and the name of the one it enters by."""
    program: Program = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = _HEAD.match(line)
        if head and not line.startswith("HloModule"):
            current = program.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (named := _NAME.match(line)):
            kind, rest = _split_type(named[3])
            opcode = re.match(r"([\w\-]+)\(", rest)
            if opcode:
                current.append(Instruction(named[2], kind, opcode[1], rest[opcode.end() :], root=bool(named[1])))
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return program, entry


def _split_type(text: str) -> tuple[str, str]:
    """`type opcode(…)` apart; a type may be a tuple, with parentheses inside."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == " " and depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def walk(
    program: Program, name: str, times: int = 1, certain: bool = True, depth: int = 0
) -> Iterator[tuple[str, Instruction, int, bool, int]]:
    """Every instruction that is reached: its computation, itself, how often it runs, if that is known, loops around it."""
    for instruction in program.get(name, ()):
        yield name, instruction, times, certain, depth
        if instruction.opcode == "while":
            trips = trips_of(program, instruction)
            body = BODY.search(instruction.rest)
            if body:
                yield from walk(program, body[1], times * (trips or 1), certain and trips is not None, depth + 1)
        elif not instruction.opcode.endswith(("-done", "-update")):
            called = _CALLS.findall(instruction.rest)
            for listed in _BRANCHES.findall(instruction.rest):
                called += re.findall(r"[\w.\-]+", listed)
            for inner in called:
                yield from walk(program, inner, times, certain, depth)


def trips_of(program: Program, loop: Instruction) -> int | None:
    """How often a `while` runs, `None` where the text does not say."""
    told = _TRIPS.search(loop.rest)
    if told:
        return int(told[1])
    # Else read its condition, if it is `counter < constant`: jax's own loops count from 0, so the constant is the number.
    condition = _CONDITION.search(loop.rest)
    inside = list(walk(program, condition[1])) if condition else []
    compared = [i for _, i, *_ in inside if i.opcode == "compare"]
    constants = [i for _, i, *_ in inside if i.opcode == "constant" and i.type.startswith(("s32[]", "s64[]"))]
    logic = [i for _, i, *_ in inside if i.opcode in ("and", "or", "not", "reduce")]
    if len(compared) == 1 and len(constants) == 1 and not logic and "direction=LT" in compared[0].rest:
        number = re.match(r"(\d+)\)", constants[0].rest)
        return int(number[1]) if number else None
    return None


def _group(rest: str, devices: int) -> int:
    listed = _GROUPS.search(rest)
    if listed:
        return listed[1].count(",") + 1
    named = _MESH_GROUPS.search(rest)
    if named:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", named[2]))
    iota = _IOTA_GROUPS.search(rest)
    return int(iota[1]) if iota else devices


def _bytes(instruction: Instruction) -> int:
    """Bytes of what the instruction gives; a `-start` gives its operands too, in front."""
    sizes = [
        array_bytes(dtype, map(int, filter(None, shape.split(","))))
        for dtype, shape in _SHAPE.findall(instruction.type)
    ]
    if instruction.opcode.endswith("-start") and instruction.type.startswith("("):
        if instruction.opcode == "collective-permute-start":  # operands, results, two counters
            return sum(size for size in sizes if size > 4) // 2 or sizes[0]
        if instruction.opcode != "all-reduce-start":
            sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def array_bytes(dtype: str, sizes: Iterable[int]) -> int:
    """Bytes of an array, by XLA's name for its dtype."""
    bits, count = re.search(r"\d+", dtype), math.prod(sizes)
    return count if bits is None else -(-count * int(bits[0]) // 8)  # `pred` takes a byte


def _source(instruction: Instruction) -> str:
    found = _SOURCE.search(instruction.rest)
    return found[1] if found else ""
