"""transformers on torch as an engine: a model directory and a case in, what is timed out. Only its worker imports it.

Contexts of mixed length are batched by length, as a careful user would; a chat's turn reads the whole dialogue.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dialogpt_jax.bench.cases import CHAT_NEW, COMPILED, MIXED_NEW, Case
from dialogpt_jax.bench.facts import MODEL_FOLDER, batches_by_length, in_a_process, prompts, read_facts
from dialogpt_jax.bench.worker import Program

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
WARM_CALLS = 3  # of the compiled: it compiles, records what is launched, and runs
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What `start` runs in a process of its own.
FIRST_REPLY = """
import sys, torch, transformers
torch.set_num_threads(int(sys.argv[3]))
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.GPT2LMHeadModel.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
ids = tokenizer("hello" + tokenizer.eos_token, return_tensors="pt").input_ids
new = int(sys.argv[4])
with torch.inference_mode():
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new,
                         max_new_tokens=new, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(out[0, ids.shape[1]:]))
"""


@functools.lru_cache(maxsize=4)
def load(folder: str, dtype: str) -> Any:
    path = str(Path(folder) / MODEL_FOLDER)
    return transformers.GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval().to(DEVICE)


def make(folder: str, dtype: str, what: str, case: dict[str, Any], threads: int) -> Program:
    """What is timed of a case."""
    asked = Case(**case)
    torch.set_num_threads(threads)
    if asked.line == "start":
        return in_a_process(["-c", FIRST_REPLY, str(Path(folder) / MODEL_FOLDER), dtype, str(threads), str(CHAT_NEW)])
    if asked.line == "train":
        return Program(training(folder, asked, dtype))
    model = load(folder, dtype)
    if asked.line == "mixed":
        return Program(replying(model, read_facts(folder), asked.rows))
    ids = (
        np.array([read_facts(folder)["context"]]) if asked.line == "chat" else prompts(folder, asked.rows, asked.prompt)
    )
    how = compiled_settings() if what == COMPILED else {}
    program = Program(lambda: generate(model, ids, np.ones_like(ids), new=asked.new, least=asked.new, **how))
    for _ in range(WARM_CALLS if what == COMPILED else 0):
        program.run()
    return program


def compiles() -> bool:
    """Whether decoding compiled takes part: on a GPU, for which it is made."""
    return torch.cuda.is_available()


def compiled_settings(*, anywhere: bool = False) -> dict[str, Any]:
    """What `generate` compiles its steps by: a cache of one size, and no Python between the operations of a step.

    Args:
      anywhere: on a CPU too.
    """
    how: Any = transformers.CompileConfig(fullgraph=True, mode="reduce-overhead")
    how._compile_all_devices = anywhere
    return {"cache_implementation": "static", "compile_config": how}


def generate(
    model: Any, tokens: np.ndarray, mask: np.ndarray, *, new: int, least: int, eos: int | None = None, **settings: Any
) -> Any:
    """Greedy replies to left-padded prompts; `settings` are more of transformers' own."""
    eos = model.config.eos_token_id if eos is None else eos
    how = settings | {"min_new_tokens": least, "max_new_tokens": new, "pad_token_id": eos, "eos_token_id": eos}
    ids, seen = (torch.from_numpy(np.ascontiguousarray(x)).long().to(DEVICE) for x in (tokens, mask))
    with torch.inference_mode():
        return model.generate(ids, attention_mask=seen, do_sample=False, **how).cpu()


def replying(model: Any, facts: dict[str, Any], rows: int) -> Callable[[], Any]:
    batches = batches_by_length(facts["contexts"], rows)

    def run() -> None:
        for contexts in batches:
            width = max(map(len, contexts))
            tokens = np.array([[facts["eos"]] * (width - len(ids)) + ids for ids in contexts])
            mask = np.array([[0] * (width - len(ids)) + [1] * len(ids) for ids in contexts])
            generate(model, tokens, mask, new=MIXED_NEW, least=1, eos=facts["eos"])

    return run


def training(folder: str, case: Case, dtype: str) -> Callable[[], Any]:
    """A step of training, without dropout; bfloat16 by autocast, over float32 parameters."""
    path = str(Path(folder) / MODEL_FOLDER)
    rates: Any = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    network = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32, **rates).train().to(DEVICE)
    network.config.use_cache = False
    vectors = [p for _, p in network.named_parameters() if p.ndim == 1]
    matrices = [p for _, p in network.named_parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    tokens = np.random.default_rng(0).integers(0, network.config.vocab_size, (case.rows, case.prompt))
    ids = torch.from_numpy(tokens).long().to(DEVICE)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = network(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        loss.item()

    return run
