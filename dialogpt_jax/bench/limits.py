"""What a machine allows: a case and measured speeds in, the least seconds of a call out.

A product takes at least its operations over the flop/s of a large product, and at least the bytes of its weight over the
speed at which memory is read. A step at few rows is bound by bytes, a prefill of many tokens by operations.

Letters: B rows, T prompt tokens, S slots that are read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dialogpt_jax.bench.cases import CHAT_WORDS, Case
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.parallel.chips import forward_flops, training_flops


def weight_bytes(config: GPT2Config, dtype: str) -> float:
    """What one step reads of the weights: all but the position embeddings, the head once."""
    return (config.num_parameters - config.n_positions * config.n_embd) * np.dtype(dtype).itemsize


def least_seconds(
    config: GPT2Config, case: Case, dtype: str, speeds: Mapping[str, Any], *, context: int
) -> float | None:
    """The least seconds of a call; `None` where the case has none that one could count.

    Args:
      dtype: of the weights.
      speeds: `bandwidth` in bytes/s, and `flops` in flop/s by dtype.
      context: tokens of a chat's context.
    """
    if dtype not in speeds["flops"]:
        return None
    peak, bandwidth = speeds["flops"][dtype], speeds["bandwidth"]
    read = weight_bytes(config, dtype) / bandwidth

    def prefill(tokens: int) -> float:
        return max(forward_flops(config, case.rows, tokens, head_tokens=case.rows) / peak, read)

    def steps(count: int, slots: float) -> float:
        scales = 4 / config.head_dim if dtype == "int8" else 0
        a_number = np.dtype(dtype).itemsize + scales
        cache = case.rows * slots * 2 * config.n_layer * config.n_embd * a_number / bandwidth
        flops = forward_flops(config, case.rows, 1, head_tokens=case.rows) / peak
        return count * max(read + cache, flops)

    if case.line in ("decode", "lookup", "draft", "prefill"):  # the first token comes with the prefill
        return prefill(case.prompt) + steps(case.new - 1, case.prompt + case.new / 2)
    if case.line == "chat":
        return prefill(CHAT_WORDS + 1) + steps(case.new - 1, context + case.new / 2)
    if case.line == "train":
        return training_flops(config, case.rows, case.prompt) / peak
    return None
