"""What chips can do, and what a model asks of them: a device's kind or a config in, bytes, flops and cores out.

Letters: B rows, T tokens.
"""

import dataclasses
import os

from dialogpt_jax.config import GPT2Config


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip: bytes, bytes/s and flop/s; `network` is what it sends over all its links together."""

    name: str
    memory: float
    flops: float
    memory_speed: float
    network: float


# Source: "System architecture" of each in cloud.google.com/tpu/docs; links in Gbit/s there, by eight here. (v4 and v5p from
# memory, not read again.)
CHIPS = {
    "TPU v4": Chip("TPU v4", 32 * 2**30, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 32 * 2**30, 918e12, 1640e9, 448e9),
}

# Dense bfloat16 flop/s by a part of jax's name for the device. Source: NVIDIA's data sheets, the figures without sparsity.
_GPUS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L40": 181e12}
_GPUS |= {"L4": 121e12, "V100": 125e12}  # a shorter name behind the longer ones that hold it


def peak_flops(device_kind: str) -> float | None:
    """The most bfloat16 flop/s of a device, by jax's name for it; `None` where it is not known."""
    if device_kind in CHIPS:
        return CHIPS[device_kind].flops
    return next((flops for name, flops in _GPUS.items() if name in device_kind), None)


def usable_cores() -> int:
    """The cores of this machine that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forward_flops(config: GPT2Config, rows: int, length: int, *, head_tokens: int) -> float:
    """Multiplications and additions of a forward pass: 2 a weight and token, and the two products of attention, whole."""
    blocks = config.n_layer * (4 * config.n_embd**2 + 2 * config.n_embd * config.mlp_dim)
    attention = 4 * config.n_layer * config.n_embd * length
    head = 2 * config.padded_vocab_size * config.n_embd
    return float(rows * length * (2 * blocks + attention) + head_tokens * head)


def training_flops(config: GPT2Config, rows: int, length: int, *, again: bool = False) -> float:
    """Forward and twice as much backward (6 a weight and token); `again`: blocks are computed a second time."""
    blocks = forward_flops(config, rows, length, head_tokens=0)
    whole = forward_flops(config, rows, length, head_tokens=rows * length)
    return 3 * whole + (blocks if again else 0.0)
