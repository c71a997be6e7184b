"""What a dry run found, as values and as text: figures of compiled programs in, a table that a person reads out."""

import dataclasses
from collections.abc import Mapping

from dialogpt_jax.errors import counted
from dialogpt_jax.parallel.chips import Chip
from dialogpt_jax.run.compiled_text import Collective, Loop


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """A compiled program, for one device.

    Attributes:
      name: what it is.
      seconds_to_compile: on this machine.
      arguments, outputs, aliased, temporaries, code: bytes; what is aliased (donated) is in both arguments and outputs.
      flops: the model's arithmetic in one run, counted by hand: what a utilisation is measured by. For `generate`, that
        of the prompt alone, since how many steps follow is not known before.
      xla_flops, bytes_accessed: what XLA counts; it counts the body of a loop once, and what an operation reads and
        writes whether it lies in memory or on the chip.
      collectives, loops: as the compiled text has them.
      chip: what it runs on.
    """

    name: str
    seconds_to_compile: float
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    flops: float
    xla_flops: float
    bytes_accessed: float
    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]
    chip: Chip

    @property
    def memory(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        return self.memory <= self.chip.memory

    @property
    def network_bytes(self) -> float:
        """What a device sends in one run (those in loops of unknown length once)."""
        return sum(found.wire_bytes * found.times for found in self.collectives)

    @property
    def roofline(self) -> dict[str, float]:
        """Seconds that computing, memory and network take at full speed, each alone; the longest bounds a run.

        Memory's is by XLA's count, which holds what stays on the chip to be memory too: more than is really read.
        """
        return {
            "compute": max(self.flops, self.xla_flops) / self.chip.flops,
            "memory": self.bytes_accessed / self.chip.memory_speed,
            "network": self.network_bytes / self.chip.network,
        }


@dataclasses.dataclass(frozen=True)
class DryRunReport:
    """What `dry_run` found.

    Attributes:
      topology, chip, devices, mesh: where it would run.
      rows, length: of a batch, B and T.
      parameters: of the model.
      programs: the train step, then `generate` if it was asked for.
    """

    topology: str
    chip: Chip
    devices: int
    mesh: Mapping[str, int]
    rows: int
    length: int
    parameters: int
    programs: tuple[CompiledProgram, ...]


def render(report: DryRunReport) -> str:
    """The report as a person reads it."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in report.mesh.items())
    chip = report.chip
    lines = [
        f"{report.topology}: {counted(report.devices, 'devices')}, {chip.name}, {_mb(chip.memory)} each; mesh {mesh}",
        f"{report.parameters:,} parameters; {counted(report.rows, 'rows')} of {report.length} tokens, "
        f"{report.rows * report.length // report.devices:,} tokens a device",
    ]
    return "\n".join(lines + [line for program in report.programs for line in _rendered(program)])


def _rendered(program: CompiledProgram) -> list[str]:
    chip, times = program.chip, program.roofline
    slowest = max(times, key=times.__getitem__)
    lines = [
        "",
        f"{program.name}, on each device (compiled in {program.seconds_to_compile:.0f} s)",
        f"  memory      {_mb(program.memory):>12}  {'fits' if program.fits else 'DOES NOT FIT'} in {_mb(chip.memory)}",
        f"    arguments {_mb(program.arguments):>12}",
        f"    outputs   {_mb(program.outputs):>12}  of which {_mb(program.aliased)} take the arguments' place",
        f"    temporary {_mb(program.temporaries):>12}",
        f"    code      {_mb(program.code):>12}",
        f"  flops       {program.flops / 1e9:>10,.1f} G  counted by hand; XLA, which takes a loop once: "
        f"{program.xla_flops / 1e9:,.1f} G",
        f"  traffic     {program.bytes_accessed / 1e9:>10,.2f} GB read and written, by XLA, on the chip too; a loop once",
    ]
    lines += ["  collectives" + ("" if program.collectives else ": none")]
    for kind, certain, count, size, wire in collective_table(program):
        mark = "" if certain else "  each pass of a loop"
        lines.append(f"    {kind:<20}{count:>6} × {_mb(size / max(count, 1)):>10}  {_mb(wire)} sent{mark}")
    lines += ["  loops" + ("" if program.loops else ": none")]
    for loop in program.loops:
        trips = "until its condition ends it" if loop.trips is None else f"{loop.trips} times"
        lines.append(f"    {'  ' * loop.depth}{trips}  {loop.source[-90:]}")
    least = "  ".join(f"{name} {1e3 * value:.2f} ms" for name, value in times.items())
    lines.append(f"  roofline    {1e3 * times[slowest]:.2f} ms, bound by {slowest}: {least}")
    return lines


def collective_table(program: CompiledProgram) -> list[tuple[str, bool, int, int, float]]:
    """(kind, whether its number is known, number, bytes of all, bytes that a device sends), the most bytes first."""
    rows = []
    for kind, certain in sorted({(found.kind, found.certain) for found in program.collectives}):
        chosen = [found for found in program.collectives if (found.kind, found.certain) == (kind, certain)]
        count = sum(found.times for found in chosen)
        size = sum(found.bytes * found.times for found in chosen)
        rows.append((kind, certain, count, size, sum(found.wire_bytes * found.times for found in chosen)))
    return sorted(rows, key=lambda row: -row[4])


def _mb(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"
