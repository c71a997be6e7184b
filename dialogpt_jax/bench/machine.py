"""The machine that measures: nothing in; its device, its flags, how fast it reads memory and makes products, out."""

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.parallel.chips import usable_cores

FLAGS = ("avx2", "fma", "avx512", "vnni", "bf16", "fp16", "amx")  # what decides which kernels an engine has
READ_NUMBERS = 100_000_000  # float32: 400 MB, more than any cache
LARGE_READ_NUMBERS = 1_000_000_000  # where 400 MB are read before the call has begun
PRODUCT, LARGE_PRODUCT = 2048, 8192  # rows of the square product whose flop/s count; the large one on a GPU or TPU
TRIES = 5


def describe_machine(dtypes: list[str]) -> dict[str, Any]:
    """What a reader of the figures needs to know; some seconds. Products are measured in these dtypes."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    room = (device.memory_stats() or {}).get("bytes_limit", 0)
    large = min(LARGE_READ_NUMBERS, max(room // 16, READ_NUMBERS))  # a quarter of its memory
    size, numbers = (PRODUCT, READ_NUMBERS) if on_cpu else (LARGE_PRODUCT, large)
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "cpu_flags": cpu_flags(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "bandwidth": read_speed(numbers),
        "flops": {dtype: product_speed(dtype, size) for dtype in dtypes},
    }


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def cpu_flags(text: str | None = None) -> list[str]:
    """The flags of /proc/cpuinfo that matter, in full; none where there is no such file."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo() if text is None else text, re.MULTILINE)
    return sorted({flag for flag in (found[1].split() if found else []) if any(word in flag for word in FLAGS)})


def read_speed(numbers: int) -> float:
    """Bytes a second that a sum over an array reads from memory."""
    x = jnp.ones(numbers, jnp.float32)
    total = jax.jit(jnp.sum)
    return x.nbytes / _least(lambda: total(x))


def product_speed(dtype: str, size: int) -> float:
    """Operations a second of a large square product, in int8 into int32."""
    keys = jax.random.split(jax.random.key(0))
    x, w = ((8 * jax.random.normal(key, (size, size))).astype(dtype) for key in keys)
    how: dict[str, Any] = {"preferred_element_type": jnp.int32 if dtype == "int8" else jnp.float32}
    if dtype == "float32":
        how["precision"] = "highest"  # on every platform float32 is float32
    product = jax.jit(lambda x, w: jnp.einsum("MI,OI->MO", x, w, **how))
    return 2 * size**3 / _least(lambda: product(x, w))


def _least(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls: a probe asks what can be, not what mostly is."""
    jax.block_until_ready(run())
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - start)
    return min(found)
