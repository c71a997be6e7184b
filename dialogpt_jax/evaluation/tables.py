"""Measures of one system or two flow in; a table comes out as text, Markdown or JSON, beside a published row if asked.

Measures stand in rows. Values are fractions as they were computed (BLEU 0.1790, not 17.90 %); so are published rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dialogpt_jax.evaluation.intervals import Difference, Estimate, interval

_DIGITS = {"Dist": 6, "length": 6, "repetition": 6}  # all others 4

_NAMES_6K = ("NIST-2", "NIST-4", "BLEU-2", "BLEU-4", "METEOR", "Ent-4", "Dist-1", "Dist-2", "length")
_PERCENT = ("BLEU", "METEOR", "Dist")


def _row(printed: str) -> dict[str, float]:
    """A row of the tables in DialoGPT's README, its percentages as fractions."""
    values = zip(_NAMES_6K, map(float, printed.split()), strict=True)
    return {name: value / 100 if name.startswith(_PERCENT) else value for name, value in values}


# microsoft/DialoGPT, README.md, "Evaluations": N2 N4 B2 B4 METEOR E4 D1 D2 length, as printed there.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "6k-human": _row("3.41 4.25 17.90 7.48 10.64 11 14.50 63.00 13.1")
    | {"NIST-1": 2.99, "NIST-3": 3.83, "BLEU-1": 0.3961, "BLEU-3": 0.1071},  # from a comment of that file
    "6k-small": _row("2.39 2.41 10.54 1.55 7.53 10.78 8.60 39.90 12.8"),
    "6k-medium": _row("3 3.06 16.96 4.56 9.81 9.13 6.80 26.30 12.2"),
    "6k-large": _row("2.84 2.9 18.66 5.25 9.66 9.72 7.76 29.93 11.2"),
    "6k-medium-beam": _row("3.4 3.5 21.76 7.92 10.74 10.48 12.38 48.74 11.3"),
    "6k-medium-mmi": _row("3.28 3.33 15.68 3.94 11.23 11.25 9.39 45.55 17.2"),
    "dstc7-human": _row("2.62 2.65 12.35 3.13 8.31 10.45 16.66 67.01 18.8"),
    "dstc7-winner": _row("2.51 2.52 14.35 1.83 8.07 9.03 10.89 32.49 15.1"),
    "dstc7-medium": _row("2.80 2.82 14.16 2.31 8.51 10.08 9.13 39.73 16.9"),
    "dstc7-medium-beam": _row("2.92 2.97 19.18 6.05 9.29 9.57 15.73 51.03 14.2"),
}


class Table(NamedTuple):
    """What a table shows: a line above it, the arguments of `as_text`, and what was asked for."""

    title: str
    systems: Mapping[str, Sequence[Estimate]]
    differences: Sequence[Difference]
    settings: Mapping[str, Any]


def as_text(
    systems: Mapping[str, Sequence[Estimate]], differences: Sequence[Difference] = (), *, beside: str | None = None
) -> str:
    """Aligned columns for a terminal.

    Args:
      systems: name to measures; all of the same measures in the same order.
      differences: of two systems, first minus second, in that order too.
      beside: a key of PUBLISHED.
    """
    rows = _cells(systems, differences, beside)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(
    systems: Mapping[str, Sequence[Estimate]], differences: Sequence[Difference] = (), *, beside: str | None = None
) -> str:
    """A Markdown table; arguments as in `as_text`."""
    head, *rows = _cells(systems, differences, beside)
    rule = ["---", *["---:"] * (len(head) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, rule, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)


def as_json(
    systems: Mapping[str, Sequence[Estimate]],
    differences: Sequence[Difference] = (),
    *,
    beside: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The same numbers in full precision, with how each interval was made; what is not known is null."""
    document: dict[str, Any] = {"settings": dict(settings or {}), "systems": {}}
    for system, found in systems.items():
        rows = document["systems"][system] = {}
        for estimate in found:
            low, high = interval(estimate)
            numbers = {"value": estimate.value, "low": low, "high": high}
            rows[estimate.name] = {**{k: _known(v) for k, v in numbers.items()}, "interval": estimate.method}
    if differences:
        document["differences"] = {
            d.name: {k: _known(v) for k, v in d._asdict().items() if k != "name"} for d in differences
        }
    if beside:
        document["published"] = {beside: dict(PUBLISHED[beside])}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _cells(
    systems: Mapping[str, Sequence[Estimate]], differences: Sequence[Difference], beside: str | None
) -> list[list[str]]:
    """The table as text: its head, then one row a measure."""
    head = ["measure"]
    for system in systems:
        head += [system, "95 % interval"]
    head += ["difference", "95 % interval", "p"] if differences else []
    head += [beside] if beside else []
    rows = [head]
    for i, estimates in enumerate(zip(*systems.values(), strict=True)):
        name = estimates[0].name
        row = [name]
        for estimate in estimates:
            row += [_number(name, estimate.value), _range(name, *interval(estimate))]
        if differences:
            found = differences[i]
            row += [_number(name, found.value, sign=True), _range(name, found.low, found.high)]
            row += ["–" if math.isnan(found.p) else f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001"]
        if beside:
            published = PUBLISHED[beside].get("METEOR" if name.startswith("METEOR") else name)
            row += ["" if published is None else f"{published:.4f}" if name.startswith(_PERCENT) else f"{published:g}"]
        rows.append(row)
    return rows


def _number(name: str, value: float, *, sign: bool = False) -> str:
    digits = _DIGITS.get(name.split("-")[0], 4)
    return "–" if math.isnan(value) else f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _range(name: str, low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"{_number(name, low)} … {_number(name, high)}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
