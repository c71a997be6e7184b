"""Rules side by side as a person reads them: what `rules.measure_rules` found in; lines, Markdown or JSON out.

On a terminal each measure is a table of its own, a rule a line; in Markdown there are two wide ones, values and
differences. A difference whose interval does not hold 0 has a star.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from dialogpt_jax.evaluation.intervals import Difference, Estimate, interval
from dialogpt_jax.evaluation.rules import COMMON, NONE, SHOWN, Measured

_FORMS = {
    "NIST-4": ".3f",
    "BLEU-4": ".4f",
    "Dist-2": ".3f",
    "Ent-4": ".2f",
    "length": ".1f",
    COMMON: ".1%",
    "hits@1": ".1%",
}


def rules_as_text(found: Mapping[str, Measured]) -> str:
    """For a terminal of 80 columns: of each measure every rule's value and its difference from "none"."""
    width = max(map(len, found))
    blocks = []
    for measure in _shown(found):
        head = (
            f"{measure:<{max(width, 14)}}  {'value':>8}  {'95 % interval':>17}  {'less none':>9}  {'95 % interval':>17}"
        )
        lines = [head, "-" * len(head)]
        for name, measured in found.items():
            value, around = _cells(measure, _named(measured.estimates, measure))
            line = f"{name:<{max(width, 14)}}  {value:>8}  {around:>17}"
            if measured.differences:
                less, around = _cells(measure, _named(measured.differences, measure))
                line += f"  {less:>9}  {around:>17}"
            lines.append(line.rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "* the interval of the difference does not hold 0"])


def rules_as_markdown(found: Mapping[str, Measured]) -> str:
    """Two tables, a rule a row: the values, and how far they are from those of "none"."""
    tables = []
    for title, kept in (("rule", "estimates"), (f"rule less {NONE}", "differences")):
        lines = [[title, *_shown(found)], ["---", *["---:"] * len(_shown(found))]]
        for name, measured in found.items():
            if getattr(measured, kept):
                cells = [_cells(measure, _named(getattr(measured, kept), measure)) for measure in _shown(found)]
                lines.append([name, *(f"{value} ({around})" for value, around in cells)])
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(tables)


def rules_as_json(found: Mapping[str, Measured], settings: Mapping[str, Any]) -> str:
    """All measures in full precision, shown or not; what is not known is null."""
    document: dict[str, Any] = {"settings": dict(settings), "rules": {}}
    for name, measured in found.items():
        rows: dict[str, dict[str, Any]] = {}
        document["rules"][name] = rows
        for estimate in measured.estimates:
            low, high = interval(estimate)
            rows[estimate.name] = dict(_known({"value": estimate.value, "low": low, "high": high}))
        for difference in measured.differences:
            less = {key: getattr(difference, key) for key in ("value", "low", "high", "p")}
            rows[difference.name][f"less {NONE}"] = _known(less)
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _shown(found: Mapping[str, Measured]) -> list[str]:
    there = {estimate.name for estimate in found[NONE].estimates}
    return [name for name in SHOWN if name in there]


def _named(rows: list[Any], measure: str) -> Any:
    return next(row for row in rows if row.name == measure)


def _cells(measure: str, row: Estimate | Difference) -> tuple[str, str]:
    """A value and its interval, as they are written."""
    form = _FORMS[measure]
    if isinstance(row, Difference):
        if math.isnan(row.value):
            return "–", "–"
        sure = "*" if row.low > 0 or row.high < 0 else ""
        return f"{row.value:+{form}}{sure}", _range(row.low, row.high, "+" + form)
    return "–" if math.isnan(row.value) else f"{row.value:{form}}", _range(*interval(row), form)


def _range(low: float, high: float, form: str) -> str:
    return "–" if math.isnan(low) else f"{low:{form}} … {high:{form}}"


def _known(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
