"""What all engines are asked with: a folder in, the same prompts, contexts and ids for each out.

The folder holds the model's directory, its GGUF file where one is wanted, and `bench.json`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt_jax.bench.worker import Program

FACTS_FILE = "bench.json"
MODEL_FOLDER, GGUF_FILE = "model", "model.gguf"


def read_facts(folder: str) -> dict[str, Any]:
    """`words` that prompts are drawn from and the `context` of a chat, as ids; of `mixed` its `contexts` and `eos`."""
    return json.loads((Path(folder) / FACTS_FILE).read_text(encoding="utf-8"))


def write_facts(folder: str, **facts: Any) -> None:
    """Adds facts to those that are there."""
    file = Path(folder) / FACTS_FILE
    known = read_facts(folder) if file.exists() else {}
    file.write_text(json.dumps(known | facts), encoding="utf-8")


def prompts(folder: str, rows: int, length: int) -> np.ndarray:
    """tokens_BT, int32, drawn from whole words."""
    words = np.array(read_facts(folder)["words"])
    return np.random.default_rng(0).choice(words, (rows, length)).astype(np.int32)


def batches_by_length(contexts: Sequence[Sequence[int]], rows: int) -> list[list[list[int]]]:
    """Contexts in batches, the longest first: what an engine without continuous batching does best with."""
    ordered = sorted(map(list, contexts), key=len, reverse=True)
    return [ordered[i : i + rows] for i in range(0, len(ordered), rows)]


def in_a_process(words: Sequence[str], environment: dict[str, str] | None = None) -> Program:
    """A Python program, from its start to its end."""

    def run() -> None:
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or ["the process failed"])[-1])

    return Program(run)
