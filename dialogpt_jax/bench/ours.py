"""This project as an engine: a model directory and a case in, what is timed out. Only its worker imports it.

Other engines' modules (`with_….py`) have the same `make`.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dialogpt_jax as dg
from dialogpt_jax.bench import costs, drafts, machine
from dialogpt_jax.bench.cases import CHAT_NEW, CHAT_WORDS, DRAFTED, LOOKED_UP, MIXED_NEW, Case
from dialogpt_jax.bench.facts import MODEL_FOLDER, in_a_process, prompts, read_facts
from dialogpt_jax.bench.limits import least_seconds
from dialogpt_jax.bench.models import dialogue, drawn_model, write_contexts, write_model
from dialogpt_jax.bench.scopes import APART, profile_program
from dialogpt_jax.bench.worker import Program
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.decoding.generate import reply_program
from dialogpt_jax.decoding.request import Request, assemble
from dialogpt_jax.parallel.chips import training_flops
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.loading import load_language_model
from dialogpt_jax.replies.rolled import rolled_replies
from dialogpt_jax.training.optim import adamw
from dialogpt_jax.training.step import init_state, train_step
from dialogpt_jax.weights.directory import read_config
from dialogpt_jax.weights.dtypes import in_dtype, parse_dtype

__all__ = ["describe_machine", "least", "make", "profile", "training_operations", "write_contexts", "write_model"]
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
describe_machine = machine.describe_machine


@functools.lru_cache(maxsize=4)
def load(folder: str, dtype: str) -> LanguageModel:
    return load_language_model(Path(folder) / MODEL_FOLDER, dtype=dtype)


@functools.lru_cache(maxsize=1)
def drafting_model(folder: str, dtype: str) -> LanguageModel:
    """The small model that drafts for a larger one, with drawn weights."""
    small = drawn_model(GPT2Config.small(), Path(folder))
    return LanguageModel(in_dtype(small.params, small.config, parse_dtype(dtype)), small.config, small.tokenizer)


def make(folder: str, dtype: str, what: str, case: dict[str, Any], threads: int) -> Program:
    """What is timed of a case."""
    asked = Case(**case)
    if asked.line == "start":
        return first_reply(folder, dtype, cold=what.startswith("cold"))
    if asked.line == "train":
        return Program(training(load(folder, "float32"), asked, dtype))
    model = load(folder, dtype)
    if asked.line == "chat":
        return chatting(model, read_facts(folder)["words"])
    if asked.line == "mixed":
        return Program(replying(model, read_facts(folder), asked.rows))
    if asked.line == "processors":
        return costs.processor(model.params, model.config, asked.rows, what)
    if asked.line == "searches":
        return costs.search(model.params, model.config, prompts(folder, 1, asked.prompt), asked.new, what)
    if what in (LOOKED_UP, DRAFTED):
        small = drafting_model(folder, dtype) if what == DRAFTED else None
        draft = dg.Draft() if small is None else dg.Draft(small.params, small.config)
        return drafts.speculating(model, draft, prompts(folder, asked.rows, asked.prompt), asked.new)
    return Program(generating(model, prompts(folder, asked.rows, asked.prompt), asked.new))


def least(folder: str, dtype: str, case: dict[str, Any], speeds: dict[str, Any]) -> float | None:
    """The seconds that the machine allows for a case."""
    config = read_config(Path(folder) / MODEL_FOLDER)
    return least_seconds(config, Case(**case), dtype, speeds, context=len(read_facts(folder)["context"]))


def training_operations(folder: str, case: dict[str, Any]) -> float:
    """Of a training step, by which a device's utilisation is measured: six a weight and token, and attention's."""
    return training_flops(read_config(Path(folder) / MODEL_FOLDER), case["rows"], case["prompt"])


def generating(model: LanguageModel, tokens_BT: np.ndarray, new: int) -> Callable[[], Any]:
    sampling = dataclasses.replace(dg.GREEDY, min_new_tokens=new)
    rows, length = tokens_BT.shape
    how: dict[str, Any] = {
        "sampling": sampling,
        "max_new_tokens": new,
        "keys": jax.random.split(jax.random.key(0), rows),
    }
    lengths_B = np.full(rows, length, np.int32)
    return lambda: jax.block_until_ready(dg.generate(model.params, model.config, tokens_BT, lengths_B, **how))


def chatting(model: LanguageModel, words: list[int]) -> Program:
    """The last turn of a chat, said again and again with other words; the cache is kept from the turns before."""
    bot = dg.Bot(model.params, model.config, model.tokenizer)
    turns = dialogue(model.tokenizer, words)
    sampling = dataclasses.replace(dg.GREEDY, min_new_tokens=CHAT_NEW)
    chat = bot.chat(sampling=sampling, max_new_tokens=CHAT_NEW, seed=0)
    for text in turns[:-1:2]:
        chat.say(text)
    random = np.random.default_rng(3)
    texts = (model.tokenizer.decode(random.choice(words, CHAT_WORDS).tolist()).strip() for _ in itertools.count())
    said = len(chat.turns)

    def take_back() -> None:
        if len(chat.turns) > said:
            chat.undo()

    return Program(lambda: chat.say(next(texts)), take_back)


def replying(model: LanguageModel, facts: dict[str, Any], rows: int) -> Callable[[], Any]:
    """All contexts of mixed length, each row given to the next when its reply ends."""
    config = dataclasses.replace(model.config, eos_token_id=facts["eos"])
    ours, contexts = LanguageModel(model.params, config, model.tokenizer), facts["contexts"]
    how: dict[str, Any] = {
        "sampling": dg.GREEDY,
        "seed": 0,
        "places": range(len(contexts)),
        "turns": [1] * len(contexts),
    }
    return lambda: list(rolled_replies(ours, contexts, max_new_tokens=MIXED_NEW, rows=rows, **how))


def first_reply(folder: str, dtype: str, *, cold: bool) -> Program:
    """`dialogpt reply hello` in a process of its own; cold: every program is compiled anew, and none is kept."""
    words = ["-m", "dialogpt_jax.cli.main", "reply", "hello", "--model", str(Path(folder) / MODEL_FOLDER)]
    words += ["--dtype", dtype, "--max-new-tokens", str(CHAT_NEW), "--min-new-tokens", str(CHAT_NEW)]
    # Where compiled programs are kept is the command's affair, not this process's.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return in_a_process(words, environment | ({"DIALOGPT_NO_COMPILATION_CACHE": "1"} if cold else {}))


def training(model: LanguageModel, case: Case, dtype: str) -> Callable[[], Any]:
    """A step of training, without dropout; bfloat16 is of the products, over float32 parameters."""
    return _stepping(*_training(model, case, dtype))


def _stepping(state: Any, batch: Batch, step: Any) -> Callable[[], Any]:
    """Step after step."""
    states = [state]

    def run() -> None:
        after, _ = step(states.pop(), batch)
        states.append(jax.block_until_ready(after))

    return run


def _training(model: LanguageModel, case: Case, dtype: str) -> tuple[Any, Batch, Any]:
    config = dataclasses.replace(model.config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    optimizer = adamw(optax.constant_schedule(RATE), weight_decay=DECAY, clip=CLIP)
    how = {"config": config, "optimizer": optimizer, "compute_dtype": jnp.dtype(dtype)}
    step = jax.jit(functools.partial(train_step, **how), donate_argnames="state")
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (case.rows, case.prompt)).astype(np.int32)
    # A copy, since the state is donated.
    state = init_state(jax.tree.map(jnp.copy, model.params), optimizer, jax.random.key(0))
    return state, Batch(jnp.asarray(tokens_BT), jnp.ones(tokens_BT.shape, jnp.float32)), step


def profile(folder: str, dtype: str, case: dict[str, Any]) -> dict[str, Any]:
    """Where the time of a call goes, by named scope; of decoding and prefill, or of a training step."""
    asked, apart = Case(**case), APART if jax.default_backend() == "gpu" else None
    if asked.line == "train":
        state, batch, step = _training(load(folder, "float32"), asked, dtype)
        compiled = step.lower(state, batch).compile(compiler_options=apart)
        return profile_program(compiled.as_text(), _stepping(state, batch, compiled), folder)
    model = load(folder, dtype)
    request = _request(model, prompts(folder, asked.rows, asked.prompt), asked.new)
    compiled = reply_program.lower(model.params, model.config, request).compile(compiler_options=apart)
    run = functools.partial(compiled, model.params, request)
    return profile_program(compiled.as_text(), lambda: jax.block_until_ready(run()), folder)


def _request(model: LanguageModel, tokens_BT: np.ndarray, new: int) -> Request:
    rows, length = tokens_BT.shape
    sampling = dataclasses.replace(dg.GREEDY, min_new_tokens=new)
    how: dict[str, Any] = {"max_new_tokens": new, "keys": jax.random.split(jax.random.key(0), rows)}
    return assemble(model.config, tokens_BT, np.full(rows, length, np.int32), sampling=sampling, **how)
