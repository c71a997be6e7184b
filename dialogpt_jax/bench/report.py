"""What was measured, for a person and for programs: results in; a text table, JSON values or a picture out.

The rows of a case are its contenders. Behind the median of each stands how many times as fast each of ours is, by the
medians of one run: 1.20× means that it needs 1/1.20 of the time.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dialogpt_jax.bench.cases import DRAW, DRAWN, GREEDY, LINES, ONE_DRAWN, ONE_GREEDY, OURS, PROCESSED, SEARCHES, STEP
from dialogpt_jax.bench.measure import Result, ratio
from dialogpt_jax.errors import counted
from dialogpt_jax.whole_writes import whole_file

# Of the CPU's flags those by which a kernel is chosen; JSON has all that have to do with it.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_int8", "amx_bf16", "amx_fp16")
NOISY = 2.0  # times as long as the shortest call
OVERLAP = 1.01  # a profile's rows add up to more than its call where threads work at once
OVER_A_CHOICE = f"over `{DRAW}`, or `{GREEDY}` for what greedy has too; under 0 is noise"
OF_ONE_REPLY = "candidates as so many drawn replies, all else as greedy ones"


def by_case(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each case, in order."""
    return [list(group) for _, group in groupby(results, key=lambda result: result.case)]


def as_text(results: Sequence[Result]) -> str:
    """A table for each case."""
    return "\n\n".join("\n".join(_table(group)) for group in by_case(results))


def _table(group: Sequence[Result]) -> list[str]:
    case = group[0].case
    if case.line in ("processors", "searches"):
        return _costs(group)
    ours = [result for result in group if result.contender.engine == OURS and result.seconds]
    beside = ours if len(group) > 1 else []  # one alone is compared with nothing
    known = any(result.utilisation is not None for result in group)
    head = ["", case.unit, "ms", "of limit", *(["MFU"] if known else []), *(f"{_short(one)} is" for one in beside)]
    rows = [head]
    for result in group:
        name = result.contender.describe()
        if result.error:
            rows.append([name, f"failed: {result.error}"])
            continue
        figures = [_number(result.figure), _number(result.median * 1e3), _share(result)]
        figures += ["" if result.utilisation is None else f"{result.utilisation:.1%}"] if known else []
        rows.append([name, *figures, *("" if one is result else f"{ratio(one, result):.2f}×" for one in beside)])
    if case.unit == "ms":  # once is enough
        rows = [[row[0], *row[2:]] if len(row) > 2 else row for row in rows]
    return [case.describe(), *aligned(rows), *_noisy(group)]


def _noisy(group: Sequence[Result]) -> list[str]:
    """Whose calls differ so much that a median says little; the shortest and longest quarter are left out."""
    lines = []
    for one in group:
        middle = sorted(one.seconds)[len(one.seconds) // 4 : len(one.seconds) - len(one.seconds) // 4]
        if middle and middle[-1] > NOISY * middle[0]:
            least, most = (_number(1e3 * seconds) for seconds in (middle[0], middle[-1]))
            lines.append(f"  {one.contender.describe()}: calls took from {least} to {most} ms; trust no ratio to it")
    return lines


def _short(result: Result) -> str:
    """What tells ours apart in the head of a column."""
    contender = result.contender
    return (
        " ".join(filter(None, (contender.dtype if LINES[result.case.line].dtypes else "", contender.what)))
        or contender.dtype
    )


def _costs(group: Sequence[Result]) -> list[str]:
    """Each processor's cost of a token over a plain choice, as a share of a step; each search as so many single replies."""
    case = group[0].case
    found = {result.contender.what: result for result in group if result.seconds}
    rows = [["", "ms", "of a step" if case.line == "processors" else "of one reply"]]
    for result in group:
        what, base = result.contender.what, base_of(result.contender.what)
        if result.error:
            rows.append([what, f"failed: {result.error}"])
        elif what not in found or (base and base not in found):
            continue
        elif case.line == "searches":
            rows.append([what, _number(result.median * 1e3), f"{result.median / found[base or what].median:.2f}"])
        else:
            cost = result.a_token - (found[base].a_token if base else 0)
            share = f"{cost / found[STEP].a_token:.3f}" if STEP in found else ""
            rows.append([what, f"{cost * 1e3:.3f}", share])
    beside = OVER_A_CHOICE if case.line == "processors" else OF_ONE_REPLY
    return [f"{case.describe()}, {group[0].contender.dtype}; {beside}", *aligned(rows)]


def base_of(what: str) -> str | None:
    """What a cost is counted over, or against; `None` for what stands by itself."""
    if what in DRAWN:
        return DRAW
    if what in PROCESSED:
        return GREEDY
    if what in SEARCHES and what not in (ONE_GREEDY, ONE_DRAWN):
        return ONE_DRAWN if "candidates" in what else ONE_GREEDY
    return None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns stand below each other; a row of other length says something and has no columns."""
    columns = max(map(len, rows))
    whole = [row for row in rows if len(row) == columns]
    widths = [max(len(row[i]) for row in whole) for i in range(columns)]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows))
    lines = []
    for row in rows:
        first = "  " + row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)] if row in whole else row[1:]
        lines.append("  ".join([first, *rest]).rstrip())
    return lines


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(result: Result) -> str:
    return "" if result.limit is None else f"{result.limit / result.median:.0%}"


def describe_run(settings: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """What a reader of the figures needs to know, in some lines."""
    speeds = ", ".join(f"{dtype} {flops / 1e9:,.0f}" for dtype, flops in machine["flops"].items())
    flags = " ".join(flag for flag in FLAGS if flag in machine["cpu_flags"]) or "none of them known"
    model = settings["weights"]
    lines = [
        f"{settings['named']}: {model['parameters']:,} parameters, {model['layers']} layers of width {model['width']}",
        f"{machine['cpu']}, {machine['cores']} cores",
        f"flags: {flags}",
        f"jax {machine['jax']} on {machine['device']}, Python {machine['python']}",
        *(f"{name} {version}" for name, version in settings["versions"].items()),
        f"memory is read at {machine['bandwidth'] / 1e9:,.0f} GB/s; products, GFLOP/s: {speeds}",
        f"medians of {counted(settings['repeats'], 'turns')}; N× is how many times as fast ours is; the limit is what",
        "those speeds allow (a model that fits the caches may pass it)",
    ]
    return "\n".join(lines)


def profile_as_text(found: Mapping[str, Any], title: str) -> str:
    """Where the time of a call went, or why nobody knows."""
    if "error" in found:
        return f"{title}: failed: {found['error']}"
    rows = [["", "ms", "share"]]
    rows += [
        [one["scope"], f"{one['ms']:.2f}", f"{one['share']:.1%}"] for one in found["scopes"] if one["share"] >= 5e-4
    ]
    told = f"{title}: {found['plain_ms']:.1f} ms, under the profiler {found['traced_ms']:.1f}"
    together = sum(one["ms"] for one in found["scopes"])
    if together > OVERLAP * found["traced_ms"]:
        told += f"; threads at once, {together:.1f} together"
    return "\n".join([told, *aligned(rows)])


def as_values(
    results: Sequence[Result], settings: Mapping[str, Any], machine: Mapping[str, Any], profiles: Sequence[Any] = ()
) -> dict[str, Any]:
    """All of it as JSON has it, every call's seconds too."""
    rows = []
    for group in by_case(results):
        ours = {_short(one): one for one in group if one.contender.engine == OURS and one.seconds}
        for result in group:
            contender = result.contender
            row: dict[str, Any] = {"line": result.case.line, "rows": result.case.rows, "prompt": result.case.prompt}
            row |= {
                "new": result.case.new,
                "engine": contender.engine,
                "dtype": contender.dtype,
                "what": contender.what,
            }
            if result.error:
                rows.append(row | {"error": result.error})
                continue
            row |= {"unit": result.case.unit, "figure": result.figure, "median": result.median, "amount": result.amount}
            row |= {"seconds": result.seconds, "limit": result.limit, "utilisation": result.utilisation}
            if contender.engine != OURS:
                row["ours_times_as_fast"] = {name: ratio(one, result) for name, one in ours.items()}
            rows.append(row)
    return {"settings": dict(settings), "machine": dict(machine), "results": rows, "profiles": list(profiles)}


def save_plot(results: Sequence[Result], path: Path, *, title: str) -> None:
    """The cases as bars, a panel each; a line stands where the machine's limit is.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    groups = [[result for result in group if result.seconds] for group in by_case(results)]
    groups = [group for group in groups if group]
    columns = min(3, max(len(groups), 1))
    lines = math.ceil(max(len(groups), 1) / columns)
    tallest = max((len(group) for group in groups), default=1)
    size = (5.2 * columns, lines * (1.2 + 0.26 * tallest))
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, group in zip(panels, groups, strict=False):
        _draw(axes, group)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    limits = "black lines: what the measured bandwidth and flop/s allow"
    figure.suptitle(f"{title}\n{limits}", fontsize="medium", parse_math=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _draw(axes: Any, group: Sequence[Result]) -> None:
    case = group[0].case
    names = [result.contender.describe().replace(f"{OURS} ", "ours, ") for result in group]
    engines = list(dict.fromkeys(result.contender.engine for result in group))
    colors = [f"C{engines.index(result.contender.engine)}" for result in group]
    places = range(len(group))
    axes.barh(places, [result.figure for result in group], color=colors)
    for place, result in zip(places, group, strict=True):
        if result.limit is not None:
            limit = (
                result.amount / result.limit
                if case.unit.endswith("/s")
                else result.limit * result.figure / result.median
            )
            axes.plot([limit, limit], [place - 0.4, place + 0.4], color="black", linewidth=1)
    axes.set_yticks(places, names, fontsize="small")
    axes.invert_yaxis()
    better = "more is better" if case.unit.endswith("/s") else "less is better"
    axes.set_title(f"{case.describe()}\n{case.unit}, {better}", fontsize="small")
