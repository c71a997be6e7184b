"""llama.cpp as an engine: a GGUF file and a case in, what is timed out. Only its worker imports it.

Rows are sequences of one context, all in each call. A chat keeps its cache, as llama.cpp can: a turn takes the last one's
tokens away and reads the new ones.
"""

import functools
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from dialogpt_jax.bench.cases import CHAT_WORDS, Case
from dialogpt_jax.bench.facts import GGUF_FILE, prompts, read_facts
from dialogpt_jax.bench.worker import Program

FILE_TYPES = {"int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
BATCH = 2048  # tokens of one call, at most


@functools.lru_cache(maxsize=2)
def load(folder: str, dtype: str) -> Any:
    """The model; in int8 it is quantised into a file of its own first."""
    path = Path(folder) / GGUF_FILE
    if not path.exists():
        raise ValueError("this model has no GGUF form; `dialogpt convert DIR model.gguf --to gguf` says why")
    llama_cpp.llama_backend_init()
    if dtype in FILE_TYPES:
        made = path.with_suffix(f".{dtype}.gguf")
        how = llama_cpp.llama_model_quantize_default_params()
        how.ftype = FILE_TYPES[dtype]
        if not made.exists() and llama_cpp.llama_model_quantize(str(path).encode(), str(made).encode(), how):
            raise ValueError(f"llama.cpp could not quantise {path}")
        path = made
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise ValueError(f"llama.cpp could not read {path}")
    return model


class Rows:
    """Sequences of one context, which go on together."""

    def __init__(self, model: Any, rows: int, slots: int, threads: int):
        how = llama_cpp.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_seq_max = rows * (slots + 8), BATCH, rows
        how.n_threads = how.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, how)
        if not self.context:
            raise ValueError(f"llama.cpp could not make a context of {rows} rows and {slots} slots")
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.eos = llama_cpp.llama_vocab_eos(vocabulary)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.positions = np.zeros(rows, int)

    def clear(self, keep: int = 0) -> None:
        """Forgets all from a position on."""
        for row in range(len(self.positions)):
            llama_cpp.llama_memory_seq_rm(self.memory, row, keep, -1)
        self.positions[:] = keep

    def read(self, tokens_BT: np.ndarray) -> np.ndarray:
        """The most probable token behind each row's new tokens, EOS forbidden."""
        rows, length = tokens_BT.shape
        rows_a_call = max(BATCH // length, 1)
        found = []
        for first in range(0, rows, rows_a_call):
            those = range(first, min(first + rows_a_call, rows))
            count = 0
            for row in those:
                for t in range(length):
                    self.batch.token[count] = int(tokens_BT[row, t])
                    self.batch.pos[count] = int(self.positions[row]) + t
                    self.batch.n_seq_id[count] = 1
                    self.batch.seq_id[count][0] = row
                    self.batch.logits[count] = t == length - 1
                    count += 1
            self.batch.n_tokens = count
            if status := llama_cpp.llama_decode(self.context, self.batch):
                raise ValueError(f"llama.cpp could not decode {count} tokens (status {status})")
            for number in range(len(those)):
                pointer = llama_cpp.llama_get_logits_ith(self.context, (number + 1) * length - 1)
                logits_V = np.ctypeslib.as_array(pointer, (self.vocab_size,))
                logits_V[self.eos] = -np.inf
                found.append(int(logits_V.argmax()))
        self.positions += length
        return np.array(found)[:, None]

    def reply(self, tokens_BT: np.ndarray, new: int) -> np.ndarray:
        """New tokens behind a prompt; the last one is drawn and not read."""
        found = [self.read(tokens_BT)]
        while len(found) < new:
            found.append(self.read(found[-1]))
        return np.concatenate(found, axis=1)


def make(folder: str, dtype: str, what: str, case: dict[str, Any], threads: int) -> Program:
    """What is timed of a case."""
    asked = Case(**case)
    model = load(folder, dtype)
    if asked.line == "chat":
        context = np.array([read_facts(folder)["context"]])
        kept = context.shape[1] - CHAT_WORDS - 1
        chat = Rows(model, 1, context.shape[1] + asked.new, threads)
        chat.read(context[:, :kept])
        return Program(lambda: chat.reply(context[:, kept:], asked.new), lambda: chat.clear(keep=kept))
    tokens_BT = prompts(folder, asked.rows, asked.prompt)
    rows = Rows(model, asked.rows, asked.prompt + asked.new, threads)
    return Program(lambda: rows.reply(tokens_BT, asked.new), rows.clear)
