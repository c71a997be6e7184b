"""What goes with what: the README's table, each cell of which is tried here, a "yes" on a reply, a "no" for its one line.

A way of replying runs once, with everything at once; each row of the table then looks at what came. The model is a table of
what follows each token, which compiles fast; int8 has the real one.

Letters: M rows, V vocabulary.
"""

import dataclasses
import functools
import re
from pathlib import Path

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax import model
from dialogpt_jax.decoding import sampling as home
from dialogpt_jax.decoding.stops import stops_of
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.parallel.rules import decode_sharding
from dialogpt_jax.replies.keys import row_keys

README = Path(__file__).parents[2] / "README.md"
TURNS, OTHER, LENGTH, BEAMS = ["Hi!", "no", "Hello"], ["Hello"], 16, 3


def no_id_of_seven(logits_MV, state):
    """A function of the caller's: no id that seven divides, but for the end."""
    ids_V = jnp.arange(logits_MV.shape[1])
    return jnp.where(((ids_V % 7 == 0) & (ids_V != state.eos))[None], -jnp.inf, logits_MV)


EVERYTHING = dg.Sampling(
    temperature=1.5, top_k=40, xtc_probability=0.5, no_repeat_ngram=1, min_new_tokens=2, bad_words=["a", "the"],
    stop_strings=["s", "o"], processors=[no_id_of_seven],
)  # fmt: skip


def what_follows(params, config, tokens_BT, positions_BT, cache=None, **_):
    """In the place of `model.hidden`: the last token says all."""
    return jnp.take(params["wte"]["embedding"], tokens_BT, axis=0), cache


@functools.cache
def bot():
    """Of a size that no other test has: programs with the stand-in are of this file alone."""
    tokenizer, random = fakes.tiny_tokenizer(), np.random.default_rng(0)
    config = dg.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=96, n_embd=24, n_layer=1, n_head=2, tie_word_embeddings=False,
        eos_token_id=tokenizer.end_of_text_id,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: dg.init_params(config, jax.random.key(0)))
    return dg.Bot(jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes), config, tokenizer)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch, request):
    if "int8" not in request.node.name:
        monkeypatch.setattr(model, "hidden", what_follows)


# Ways: a bot and a sampling in, the ids of some replies out; the first is to `TURNS`. A search is greedy, if told to be.


def greedy(sampling):
    return dataclasses.replace(sampling, temperature=None)


def candidates(bot, sampling, **how):
    how |= {} if "beams" in how else {"n": 2}
    return ids_of(bot.candidates(TURNS, sampling=sampling, max_new_tokens=LENGTH, **how))


def chat(bot, sampling, **how):
    """The ids in the cache, which lacks the last (`None`), with drafts the last two, and the text."""
    said = dg.Chat(bot, sampling=sampling, max_new_tokens=LENGTH, turns=TURNS[:-1], **how)
    text = "".join(said.stream(TURNS[-1]))
    if how:
        return [text]
    assert "".join(bot.stream(TURNS, sampling=sampling, max_new_tokens=LENGTH)) == text
    return [[*said._cached[said.context_tokens :], *[None] * (1 if bot.draft is None else 2)], text]


def replies(bot, sampling, **how):
    return ids_of(bot.answers([TURNS, OTHER], sampling=sampling, max_new_tokens=LENGTH, **how))


def beams(bot, sampling, **how):
    return replies(bot, sampling, beams=BEAMS, **how)


def contrastive(bot, sampling, **how):
    context = bot.encode(TURNS)
    stops = stops_of(bot.tokenizer, sampling.stop_strings, bot.config.padded_vocab_size)
    out = dg.contrastive_search(
        bot.params, bot.config, [context], [len(context)], sampling=bot.with_ids(sampling), stops=stops,
        max_new_tokens=LENGTH, **how,
    )  # fmt: skip
    if not how:
        text = bot.reply(TURNS, sampling=sampling, penalty_alpha=0.6, max_new_tokens=LENGTH)
        assert text == bot.tokenizer.decode(np.asarray(out.tokens)[0, : out.lengths[0]])
    return rows_of(out)


def drafting(bot):
    """Its own model drafts for it."""
    return dataclasses.replace(bot, draft=dg.Draft(bot.params, bot.config))


def drafts(bot, sampling, **how):
    return replies(drafting(bot), sampling, **how)


def on_a_mesh(bot, sampling, **how):
    """Two devices, a dialogue each."""
    contexts = [bot.encode(TURNS), bot.encode(OTHER)]
    lengths_B = np.array(list(map(len, contexts)))
    tokens_BT = np.array([context + [0] * (lengths_B.max() - len(context)) for context in contexts])
    keys_B = jax.device_put(row_keys(0, [0, 1], [3, 1]), decode_sharding(make_mesh({"data": 2}, jax.devices()[:2])))
    call = dg.beam_search if how else dg.generate
    given = {"sampling": sampling, "max_new_tokens": LENGTH, "keys": keys_B, **(how or {"draft": bot.draft})}
    out = call(bot.params, bot.config, tokens_BT, lengths_B, **given)
    return rows_of(jax.tree.map(lambda x: x[:, 0], out) if how else out)


def ids_of(answers):
    return [answer.tokens.tolist() for answer in answers]


def rows_of(out):
    return [row[:length].tolist() for row, length in zip(*map(np.asarray, (out.tokens, out.lengths)), strict=True)]


WAYS = {
    "`reply`, `candidates`": candidates,
    "`chat`, `stream`": chat,
    "`replies`": replies,
    "`beams=`": beams,
    "`penalty_alpha=`": contrastive,
    "`draft=`": drafts,
    "keys on a mesh": on_a_mesh,
}
SLOW = ("`penalty_alpha=`", "keys on a mesh")  # ways, and rows, that want programs of their own
SLOW_ROWS = ("int8", "`beams=`", "`draft=`")


@functools.cache
def said(way):
    """With everything at once: texts as ids, where there is no tokenizer; greedy, where nothing can be drawn."""
    sampling = greedy(EVERYTHING) if way == "`penalty_alpha=`" else EVERYTHING
    if way == "keys on a mesh":
        sampling = bot().with_ids(dataclasses.replace(sampling, stop_strings=()))
    return [ids for ids in WAYS[way](bot(), sampling) if isinstance(ids, list)]


# Rows: what a "yes" is, and how a "no" is told.


def says_nothing_twice(way):
    for ids in said(way):
        assert len(set(ids)) == len(ids) > 2


def draws(way):
    """The same as a reply alone draws, up to where a text ends it; a search draws otherwise than it finds."""
    if way == "`beams=`":
        assert said(way)[0] != said("`reply`, `candidates`")[0]
        return
    one, other = said(way)[0], said("`reply`, `candidates`")[0]
    if way == "`chat`, `stream`":
        assert one[:-1] == other[:-1]
        assert chat(bot(), EVERYTHING)[1] == bot().tokenizer.decode(other)
    elif way == "keys on a mesh":  # where no text ends it
        assert one[: len(other)] == other
    else:
        assert one == other


def texts(way):
    """No bad word, and an end as soon as a text is held that ends a reply."""
    decode, encode = bot().tokenizer.decode, bot().tokenizer.encode
    for ids in said(way):
        assert not re.search("[so]", decode(ids[:-1]))
        assert not {encode(word)[0] for word in ("a", " a", "the", " the")} & set(ids)
        if len(ids) < LENGTH and ids[-1] not in (None, bot().config.eos_token_id):
            assert re.search("[so]", decode(ids))


def function(way):
    end = bot().config.eos_token_id
    for ids in said(way):
        assert all(i % 7 for i in ids if i not in (None, end))


def a_value_each(way):
    found = WAYS[way](bot(), plain(dataclasses.replace(EVERYTHING, top_k=np.array([40, 1])), way))
    assert found[0] == said(way)[0]
    assert found[1] != said(way)[1]


def plain(sampling, way):
    """As `said` has it."""
    sampling = greedy(sampling) if way == "`penalty_alpha=`" else sampling
    return bot().with_ids(dataclasses.replace(sampling, stop_strings=())) if way == "keys on a mesh" else sampling


def with_beams(way):
    found = WAYS[way](bot(), dg.GREEDY, beams=BEAMS)
    best = bot().candidates(TURNS, n=1, beams=BEAMS, max_new_tokens=LENGTH)[0]
    assert found[0] in (best.tokens.tolist(), best.text)


def with_drafts(way):
    """The same as without."""
    found = WAYS[way](drafting(bot()), plain(EVERYTHING, way))
    for ids, expected in zip(found, said(way), strict=False):
        assert [expected[i] if one is None else one for i, one in enumerate(ids)] == expected
    assert isinstance(found[-1], list) or found[-1] == bot().reply(TURNS, sampling=EVERYTHING, max_new_tokens=LENGTH)


def int8(way):
    """The programs run; tokens differ from those of floats, but not from way to way in what they keep to."""
    small = fakes.tiny_bot()
    found = WAYS[way](dataclasses.replace(small, params=dg.quantize(small.params)), dg.Sampling(0, no_repeat_ngram=1))
    for ids in found:
        assert isinstance(ids, str) or len(set(ids)) == len(ids) > 0


ROWS = {
    "penalties, blocks, DRY, lengths, ids": says_nothing_twice,
    "temperature to XTC": draws,
    "texts: `stop_strings`, `bad_words`": texts,
    "`processors=[f]`": function,
    "a number for each dialogue": a_value_each,
    "`beams=`": with_beams,
    "`draft=`": with_drafts,
    "int8": int8,
}
EACH = dataclasses.replace(EVERYTHING, top_k=np.array([40, 1]))
NO = {
    ("temperature to XTC", "`penalty_alpha=`"): (
        dg.PAPER,
        {},
        "contrastive search draws nothing; give a sampling that is",
    ),
    ("texts: `stop_strings`, `bad_words`", "keys on a mesh"): (EVERYTHING, {}, "and there is no tokenizer here"),
    ("a number for each dialogue", "`reply`, `candidates`"): (EACH, {}, "top_k has values of the shape (2,); give one"),
    ("a number for each dialogue", "`chat`, `stream`"): (
        EACH,
        {},
        "top_k has values of the shape (2,); give one number",
    ),
    ("a number for each dialogue", "`penalty_alpha=`"): (
        greedy(EACH),
        {},
        "top_k has the shape (2,); expected one number",
    ),
    ("`beams=`", "`penalty_alpha=`"): (
        dg.GREEDY,
        {"beams": 2, "penalty_alpha": 0.6},
        "beams and penalty_alpha are two ways to a reply",
    ),
    ("`beams=`", "`draft=`"): (dg.GREEDY, {"beams": 2}, "beams goes without drafts"),
    ("`draft=`", "`beams=`"): (dg.GREEDY, {"beams": 2}, "beams goes without drafts"),
    ("`draft=`", "`penalty_alpha=`"): (dg.GREEDY, {"penalty_alpha": 0.6}, "penalty_alpha goes without drafts"),
}


def table():
    """The README's, as {(row, way): cell}."""
    _, _, section = README.read_text(encoding="utf-8").partition("\n## Decode\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], way): cell for row in rows for way, cell in zip(head[1:], row[1:], strict=True)}


def marked(cell):
    slow = cell[0] in SLOW_ROWS or cell[1] in SLOW
    return pytest.param(*cell, marks=pytest.mark.slow if slow else pytest.mark.long, id=" x ".join(cell))


def test_the_table_has_these_rows_and_ways():
    cells = table()
    told = {line.strip() for line in (home.__doc__ or "").splitlines() if line.startswith("|")}
    assert told == {line for line in README.read_text(encoding="utf-8").splitlines() if line in told}
    assert len(told) == len(ROWS) + 2
    assert list(cells) == [(row, way) for row in ROWS for way in WAYS]
    assert set(cells.values()) == {"yes", "no", "–"}
    assert {cell for cell, word in cells.items() if word == "no"} == set(NO)
    assert [cell for cell, word in cells.items() if word == "–"] == [(way, way) for way in ("`beams=`", "`draft=`")]


@pytest.mark.parametrize(("row", "way"), [marked(cell) for cell, word in table().items() if word == "yes"])
def test_what_goes_together_does(row, way):
    ROWS[row](way)


@pytest.mark.parametrize(("row", "way"), [pytest.param(*cell, id=" x ".join(cell)) for cell in NO])
def test_what_does_not_is_one_line_before_anything_runs(row, way, monkeypatch):
    monkeypatch.setattr(model, "hidden", None)  # nothing is computed
    sampling, how, words = NO[row, way]
    one = drafting(bot()) if "`draft=`" in (row, way) else bot()
    call = functools.partial(one.reply, TURNS, **how) if how else functools.partial(WAYS[way], one)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        call(sampling=sampling)
    assert "\n" not in str(caught.value)
