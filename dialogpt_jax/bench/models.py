"""The weights that all engines share: a size or a model directory in, a directory and a GGUF file of our own export out.

Drawn weights have the true shapes. Their tokenizer is the bundled one with names for the other ids; only whole words are
ever drawn by greedy decoding, so that a reply is text which is encoded as the same ids again, as a trained model's is.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dialogpt_jax.bench.cases import CHAT_NEW, CHAT_TURN, CHAT_WORDS, MIXED_NEW
from dialogpt_jax.bench.facts import GGUF_FILE, MODEL_FOLDER, write_facts
from dialogpt_jax.chat.loading import bundled_directory
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import from_params
from dialogpt_jax.convert.write_gguf import ExportError, write_gguf
from dialogpt_jax.decoding.sampling import GREEDY
from dialogpt_jax.model import init_params
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.loading import load_language_model
from dialogpt_jax.replies.rolled import rolled_replies
from dialogpt_jax.text.tokenizer import END_OF_TEXT, Tokenizer
from dialogpt_jax.weights.directory import write_directory
from dialogpt_jax.weights.other_programs import CHAT_TEMPLATE

SCALE = 4.0  # of the blocks' matrices over the usual ones, which all but copy the last token
MOST_LOOKED_AT = 8000  # ids among which words are looked for
QUIET = 0.05  # of the embeddings of ids that should not be drawn


def write_model(folder: str, *, size: str | None, model: str | None, gguf: bool) -> dict[str, Any]:
    """Writes the model in each form that is wanted, and what all engines are asked with; says what it is."""
    place = Path(folder)
    if model is None and size != "bundled":
        config = getattr(GPT2Config, str(size))()
        language_model = drawn_model(config, place)
    else:
        language_model = load_language_model(bundled_directory() if model is None else model, dtype="float32")
    params, config, tokenizer = language_model.params, language_model.config, language_model.tokenizer
    write_directory(place / MODEL_FOLDER, params, config, tokenizer)
    if gguf:
        with contextlib.suppress(ExportError):  # a model that llama.cpp has not: its engine then finds no file
            write_gguf(place / GGUF_FILE, from_params(params, config), config, tokenizer, chat_template=CHAT_TEMPLATE)
    words = whole_words(tokenizer)
    turns = dialogue(tokenizer, words)
    write_facts(folder, words=words, context=language_model.encode(turns, max_new_tokens=CHAT_NEW))
    return {
        "parameters": config.num_parameters,
        "layers": config.n_layer,
        "width": config.n_embd,
        "vocabulary": config.vocab_size,
    }


def drawn_model(config: GPT2Config, folder: Path) -> LanguageModel:
    """A model of this size with drawn weights; the folder is for what is written on the way."""
    tokenizer = filled_tokenizer(config, folder / "filled_vocab.json")
    loud_V = np.full(config.padded_vocab_size, QUIET, np.float32)
    loud_V[whole_words(tokenizer)] = 1

    def draw() -> Any:
        params = init_params(config, jax.random.key(0))
        blocks = jax.tree.map(
            lambda x: x * (SCALE if x.ndim > 1 else 1), {k: v for k, v in params.items() if k.startswith("h_")}
        )
        wte = {"embedding": params["wte"]["embedding"] * loud_V[:, None]}
        return {**params, **blocks, "wte": wte}

    return LanguageModel(jax.jit(draw)(), config, tokenizer)


def filled_tokenizer(config: GPT2Config, file: Path) -> Tokenizer:
    """The bundled tokenizer, where each id of a larger vocabulary has a name, and the end of a turn its own id."""
    bundled = bundled_directory()
    ids: dict[str, int] = json.loads((bundled / "vocab.json").read_text(encoding="utf-8"))
    end = ids.pop(END_OF_TEXT)
    assert sorted(ids.values()) == list(range(end))
    ids |= {f"~{i}": i for i in range(end, config.vocab_size) if i != config.eos_token_id}
    ids[END_OF_TEXT] = config.eos_token_id
    file.write_text(json.dumps(ids), encoding="utf-8")
    return Tokenizer.from_files(file, bundled / "merges.txt")


def whole_words(tokenizer: Tokenizer) -> list[int]:
    """The ids of words of small letters with their space before: text made of them is encoded as them again."""
    ids = [i for i in range(min(tokenizer.vocab_size, MOST_LOOKED_AT)) if i != tokenizer.end_of_text_id]
    return [i for i in ids if re.fullmatch(r" [a-z]{3,}", tokenizer.decode([i]))] or ids


def dialogue(tokenizer: Tokenizer, words: Sequence[int], *, replies: int = CHAT_TURN - 1) -> list[str]:
    """The turns before a reply: a person's words, and between them replies of as many tokens as are forced out."""
    random = np.random.default_rng(1)
    turns = [
        tokenizer.decode(random.choice(words, CHAT_NEW if i % 2 else CHAT_WORDS).tolist())
        for i in range(2 * replies + 1)
    ]
    return [text.strip() if i % 2 == 0 else text for i, text in enumerate(turns)]


def write_contexts(folder: str, *, contexts: int, drawn: bool) -> int:
    """Adds contexts of mixed length, and the EOS that ends replies, to the facts; how many there are.

    They are joined from turns of the prompts by which a release is judged. Drawn weights have no EOS that greedy decoding
    reaches: then it is the token that most replies have in common.
    """
    model = load_language_model(Path(folder) / MODEL_FOLDER)
    file = bundled_directory().parent / "prompts.json"
    said = [text for one in json.loads(file.read_text(encoding="utf-8"))["prompts"] for text in one["turns"]]
    random = np.random.default_rng(2)
    most = model.config.n_positions - MIXED_NEW
    made = []
    for _ in range(contexts):
        turns = [said[i] for i in random.integers(0, len(said), random.integers(1, 16))]
        made.append(model.encode(turns, max_new_tokens=MIXED_NEW)[-most:])
    eos = common_token(model, made[:64]) if drawn else model.config.eos_token_id
    write_facts(folder, contexts=made, eos=eos)
    return len(made)


def common_token(model: LanguageModel, contexts: Sequence[Sequence[int]]) -> int:
    """The token that most replies have, from their third token on."""
    how: Mapping[str, Any] = {"seed": 0, "places": range(len(contexts)), "turns": [1] * len(contexts)}
    found: Counter[int] = Counter()
    for lot in rolled_replies(model, contexts, sampling=GREEDY, max_new_tokens=MIXED_NEW, rows=16, **how):
        for one in lot:
            found.update({int(token) for token in one.tokens_R[2 : one.length]})
    return found.most_common(1)[0][0]
