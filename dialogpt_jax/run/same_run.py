"""The identity of a run: what must not change in silence when it goes on. JSON in, lines that say what differs out."""

import json
from collections.abc import Iterator
from typing import Any


def json_round_trip(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity as it will be read back from a checkpoint: tuples are lists.

    Raises:
      ValueError: it holds something that JSON does not.
    """
    try:
        return json.loads(json.dumps(identity))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the identity of a checkpoint must be JSON: {error}") from None


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between the identity of a checkpoint and that of now: a line for each entry, none where they agree.

    Worked example: `{"seed": 0, "data": {"rows": 5}}` and `{"seed": 1, "data": {"rows": 5}}` →
    `["seed: 0 in the checkpoint, 1 now"]`.
    """

    def entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from entries(inner, f"{name}.{key}" if name else key)
        else:
            yield name, value

    then, now = dict(entries(json_round_trip(old))), dict(entries(json_round_trip(new)))

    def said(side: dict[str, Any], name: str) -> str:
        return json.dumps(side[name], ensure_ascii=False) if name in side else "nothing"

    return [
        f"{name}: {said(then, name)} in the checkpoint, {said(now, name)} now"
        for name in {**then, **now}
        if said(then, name) != said(now, name)
    ]
