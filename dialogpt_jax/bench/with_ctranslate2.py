"""CTranslate2 as an engine: a model directory and a case in, what is timed out. Only its worker imports it.

Its own converter reads the directory, once. It has no cache that stays, so a chat's turn reads the whole dialogue.
"""

import functools
import json
from pathlib import Path
from typing import Any

import ctranslate2

from dialogpt_jax.bench.cases import CHAT_NEW, MIXED_NEW, Case
from dialogpt_jax.bench.facts import MODEL_FOLDER, in_a_process, prompts, read_facts
from dialogpt_jax.bench.worker import Program

CONVERTED = "ctranslate2"
# What `start` runs in a process of its own.
FIRST_REPLY = """
import sys, ctranslate2, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
model = ctranslate2.Generator(sys.argv[1], device="auto", compute_type=sys.argv[3], intra_threads=int(sys.argv[4]))
words, new = [*tokenizer.encode("hello").tokens, "<|endoftext|>"], int(sys.argv[5])
out = model.generate_batch([words], min_length=new, max_length=new, sampling_topk=1, include_prompt_in_result=False)
print(tokenizer.decode(out[0].sequences_ids[0]))
"""


def converted(folder: str) -> str:
    path = Path(folder) / CONVERTED
    if not path.exists():
        ctranslate2.converters.TransformersConverter(str(Path(folder) / MODEL_FOLDER)).convert(str(path))
    return str(path)


@functools.lru_cache(maxsize=4)
def load(folder: str, dtype: str, threads: int) -> Any:
    how = {"compute_type": dtype, "inter_threads": 1, "intra_threads": threads}
    return ctranslate2.Generator(converted(folder), device="auto", **how)


@functools.lru_cache(maxsize=1)
def words_of(folder: str) -> list[str]:
    """The vocabulary by id: this engine is asked by words."""
    ids = json.loads((Path(folder) / MODEL_FOLDER / "vocab.json").read_text(encoding="utf-8"))
    return sorted(ids, key=ids.__getitem__)


def make(folder: str, dtype: str, what: str, case: dict[str, Any], threads: int) -> Program:
    """What is timed of a case."""
    asked = Case(**case)
    if asked.line == "start":
        paths = [converted(folder), str(Path(folder) / MODEL_FOLDER)]
        return in_a_process(["-c", FIRST_REPLY, *paths, dtype, str(threads), str(CHAT_NEW)])
    model, words, facts = load(folder, dtype, threads), words_of(folder), read_facts(folder)
    greedy = {"sampling_topk": 1, "beam_size": 1, "include_prompt_in_result": False}
    if asked.line == "mixed":
        contexts = [[words[i] for i in ids] for ids in facts["contexts"]]  # it sorts them by length itself
        how = {"max_batch_size": asked.rows, "max_length": MIXED_NEW, "min_length": 1, "end_token": words[facts["eos"]]}
        return Program(lambda: model.generate_batch(contexts, **how, **greedy))
    ids = [facts["context"]] if asked.line == "chat" else prompts(folder, asked.rows, asked.prompt).tolist()
    asked_by = [[words[i] for i in row] for row in ids]
    return Program(lambda: model.generate_batch(asked_by, max_length=asked.new, min_length=asked.new, **greedy))
