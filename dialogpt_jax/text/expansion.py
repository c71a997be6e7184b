"""How many times as long a tokenizer.json may make a text: its steps in; nothing out, or one error.

A file made to do harm turns each character into a million, or doubles the text in each of forty steps; the library does as
it is told, and the memory is full. GPT-2's own steps make two characters of a byte.
"""

import math
from collections.abc import Mapping
from typing import Any

MOST_TIMES = 256  # NFKC (18), a space that becomes a mark, and bytes as characters (2) come to less
MOST_TOKEN_CHARACTERS = 100_000  # of one token; GPT-2's longest has 128
# Unicode's own growth, at most (UAX 15, table 4, and SpecialCasing), and that of the library's other steps.
_TIMES = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 2}
_STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def check_expansion(fields: Mapping[str, Any]) -> None:
    """Passes if no step of a tokenizer.json, and not all together, makes much more of a text than it was.

    Args:
      fields: the file's, as the library has read them.

    Raises:
      ValueError: one does; the message has the number.
    """
    for step, inner in _STEPS.items():
        times = _times(fields.get(step) or {}, inner)
        if times > MOST_TIMES:
            shown = f"{times:,.0f}" if times < 1e9 else "a billion or more"
            raise ValueError(f"its {step} makes a text up to {shown} times as long; at most {MOST_TIMES} make sense")


def _times(step: Mapping[str, Any], inner: str) -> float:
    match step.get("type"):
        case "Sequence":
            return math.prod((_times(one, inner) for one in step.get(inner, ())), start=1.0)
        case "Replace":
            pattern, content = step.get("pattern", {}), len(str(step.get("content", "")))
            replaced = len(str(pattern.get("String", ""))) if isinstance(pattern, Mapping) else 0
            return max(1.0, content / replaced) if replaced else 1.0 + content  # a regex may match nothing, everywhere
        case "Prepend":
            return 1.0 + len(str(step.get("prepend", "")))
        case "Precompiled":
            return math.inf  # any text for any other; sentencepiece's, and no byte-level tokenizer has it
        case kind:
            return _TIMES.get(str(kind), 1)
