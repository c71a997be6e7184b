"""Every public program at 40,000 rows is as near to float64 as it is in batches of 1,000.

jaxlib 0.10.2 for CPU computes some small products followed by a reduction wrongly from 32,769 rows on (jax #39103), and
says nothing. Float32 rounds otherwise in other shapes, so what is compared is the distance from a second model in
float64: a large batch may be at most four times as far from it as small batches are. That this finds the fault is
tested too.

Letters: B rows, T tokens, N replies of a row, R tokens of a reply.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import optax
import pytest
import reference
from fakes import TINY, no_dropout

import dialogpt_jax as dg
from dialogpt_jax.convert.mapping import from_params
from dialogpt_jax.decoding.score import score_candidates
from dialogpt_jax.likelihood import token_losses

ROWS, FEW = 40_000, 1_000
STARTS = [*range(0, ROWS, 8 * FEW), 33 * FEW, ROWS - FEW]  # the small batches; rows from 32,769 on are in three of them
FAULTY = {"0.10.2"}  # jaxlib

CONFIG = no_dropout(dataclasses.replace(TINY, n_positions=16, n_embd=8, n_layer=1, n_head=2))


@functools.cache
def params():
    drawn = jax.jit(dg.init_params, static_argnums=0)(CONFIG, jax.random.key(1))
    return jax.tree.map(lambda x: 10 * x, drawn)  # logits that differ enough to choose by


@functools.cache
def weights():
    return reference.checkpoint({name: np.asarray(x) for name, x in from_params(params(), CONFIG).items()})


def inputs(length):
    random = np.random.default_rng(2)
    tokens_BT = random.integers(0, CONFIG.vocab_size, (ROWS, length)).astype(np.int32)
    return tokens_BT, random.integers(1, length + 1, ROWS).astype(np.int32), jax.random.split(jax.random.key(3), ROWS)


def sampled_rows(tree):
    """What a program gave for all rows → what it gave for the rows of the small batches."""
    return jax.tree.map(lambda x: np.concatenate([x[start : start + FEW] for start in STARTS]), tree)


def many_and_few(program, given):
    """(what the large batch gives, what small ones do), for the same rows."""
    few = [jax.device_get(program(*(x[start : start + FEW] for x in given))) for start in STARTS]
    return sampled_rows(jax.device_get(program(*given))), jax.tree.map(lambda *x: np.concatenate(x), *few)


def as_near(many, few, true) -> bool:
    """Whether the large batch's numbers are as near to float64's as the small batches' are."""
    least = np.finfo(np.float32).eps * np.abs(true).max()
    return np.abs(many - true).max() <= 4 * max(np.abs(few - true).max(), least)


def true_losses(tokens_BT):
    """−log p of each token by those before it, float64; the first of a row is 0."""
    logits_BTV = reference.logits(weights(), CONFIG, tokens_BT)[:, :-1]
    top_BT = logits_BTV.max(axis=-1)
    sums_BT = top_BT + np.log(np.exp(logits_BTV - top_BT[..., None]).sum(axis=-1))
    picked_BT = np.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return np.pad(sums_BT - picked_BT, ((0, 0), (1, 0)))


def test_the_comparison_finds_the_fault_where_there_is_one():
    """A 3 × 3 product of each row, squared and summed: wrong by jaxlib 0.10.2, right by newer ones."""
    random = np.random.default_rng(0)
    x_BT, kernel = random.normal(size=(ROWS, 3)).astype(np.float32), random.normal(size=(3, 3)).astype(np.float32)
    many, few = many_and_few(jax.jit(jax.vmap(lambda row: jnp.sum((kernel @ row) ** 2))), (x_BT,))
    true = ((sampled_rows(x_BT).astype(np.float64) @ kernel.T.astype(np.float64)) ** 2).sum(axis=-1)
    assert as_near(many, few, true) == (jaxlib.version.__version__ not in FAULTY), jaxlib.version.__version__
    right = slice(0, 4 * FEW)  # rows before the 32,769th
    assert as_near(many[right], few[right], true[right])


def scored(tokens_BT, lengths_B, keys):
    return dg.score(params(), CONFIG, tokens_BT, np.maximum(lengths_B - 2, 0), lengths_B).logprobs


def true_scores(tokens_BT, lengths_B):
    places = np.arange(tokens_BT.shape[1])[None]
    mask_BT = (places >= np.maximum(lengths_B - 2, 0)[:, None]) & (places < lengths_B[:, None])
    return -true_losses(tokens_BT) * mask_BT


def replies_of(tokens_BT):
    return np.stack([tokens_BT[:, ::-1], tokens_BT], axis=1)


def scored_candidates(tokens_BT, lengths_B, keys):
    counts_BN = np.stack([lengths_B, np.full_like(lengths_B, 3)], axis=1)
    return score_candidates(params(), CONFIG, tokens_BT, lengths_B, replies_of(tokens_BT), counts_BN).logprobs


def true_continuations(tokens_BT, lengths_B, replies_BR, counts_B):
    """log p of each token of a reply after the row's first `lengths_B` tokens, 0 from `counts_B` on."""
    out_BR = np.zeros(replies_BR.shape)
    for length in range(1, tokens_BT.shape[1] + 1):
        at = lengths_B == length
        whole = np.concatenate([tokens_BT[at, :length], replies_BR[at]], axis=1)
        out_BR[at] = -true_losses(whole)[:, length:]
    return out_BR * (np.arange(replies_BR.shape[1])[None] < counts_B[:, None])


def true_candidates(tokens_BT, lengths_B):
    counts = (lengths_B, np.full_like(lengths_B, 3))
    replies = replies_of(tokens_BT)
    return np.stack(
        [true_continuations(tokens_BT, lengths_B, replies[:, n], counts[n]) for n in range(2)],
        axis=1,
    )


jitted_losses = jax.jit(token_losses, static_argnums=1)


@jax.jit
def row_losses(params, tokens_BT):
    """The loss of each row by itself, as a caller who wants one a row would vmap it."""
    ones = np.ones((1, tokens_BT.shape[1]), np.float32)
    return jax.vmap(lambda tokens_T: dg.loss(params, CONFIG, tokens_T[None], ones)[0])(tokens_BT)


@jax.jit
def row_gradients(params, tokens_BT):
    """The loss of each row, as the program gives it that makes the gradient too."""
    ones = np.ones((1, tokens_BT.shape[1]), np.float32)

    def row(tokens_T):
        return jax.value_and_grad(lambda params: dg.loss(params, CONFIG, tokens_T[None], ones)[0])(params)[0]

    return jax.vmap(row)(tokens_BT)


PROGRAMS = {  # the program, and what float64 says
    "forward": (
        lambda tokens_BT, lengths_B, keys: dg.forward(params(), CONFIG, tokens_BT)[..., : CONFIG.vocab_size],
        lambda tokens_BT, lengths_B: reference.logits(weights(), CONFIG, tokens_BT),
    ),
    "score": (scored, true_scores),
    "score_candidates": (scored_candidates, true_candidates),
    "token_losses": (
        lambda tokens_BT, lengths_B, keys: jitted_losses(params(), CONFIG, tokens_BT),
        lambda tokens_BT, lengths_B: true_losses(tokens_BT),
    ),
    "loss of each row": (
        lambda tokens_BT, lengths_B, keys: row_losses(params(), tokens_BT),
        lambda tokens_BT, lengths_B: true_losses(tokens_BT)[:, 1:].mean(axis=1),
    ),
    "gradient of each row": (
        lambda tokens_BT, lengths_B, keys: row_gradients(params(), tokens_BT),
        lambda tokens_BT, lengths_B: true_losses(tokens_BT)[:, 1:].mean(axis=1),
    ),
}
FAST = {("score", 3), ("loss of each row", 3)}


def slow_but_for(chosen, cases):
    return [pytest.param(*case, marks=() if case in chosen else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("name", "length"), slow_but_for(FAST, [(name, t) for name in PROGRAMS for t in (3, 4)]))
def test_many_rows_are_as_near_to_float64_as_few(name, length):
    program, truth = PROGRAMS[name]
    given = inputs(length)
    many, few = many_and_few(program, given)
    assert as_near(many, few, truth(*sampled_rows(given[:2])))


SAMPLINGS = {
    "greedy": dg.GREEDY,
    "sampled": dg.Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2),
    "top-k": dg.PAPER,
}


@pytest.mark.parametrize(("name", "length"), slow_but_for((), [(n, t) for n in SAMPLINGS for t in (3, 4)]))
def test_replies_to_many_rows_are_those_to_few(name, length):
    given = inputs(length)

    def program(tokens_BT, lengths_B, keys):
        return dg.generate(
            params(), CONFIG, tokens_BT, lengths_B, sampling=SAMPLINGS[name], max_new_tokens=2, keys=keys
        )

    many, few = many_and_few(program, given)
    assert (many.tokens != few.tokens).any(axis=-1).mean() < 0.002  # a draw may lie within rounding of an edge
    tokens_BT, lengths_B = sampled_rows(given[:2])
    distances = [
        out.logprobs - true_continuations(tokens_BT, lengths_B, np.asarray(out.tokens), np.asarray(out.lengths))
        for out in (many, few)
    ]
    assert as_near(*distances, np.zeros_like(distances[0])), [np.abs(x).max() for x in distances]


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 4])
def test_the_loss_of_many_rows_its_gradient_and_a_step_are_those_of_float64(length):
    tokens_BT, lengths_B, _ = inputs(length)
    weights_BT = (np.arange(length)[None] < lengths_B[:, None]).astype(np.float32)
    value, gradient = reference.loss_and_gradients(weights(), CONFIG, tokens_BT, weights_BT.astype(np.float64))

    def mean(params, tokens_BT, weights_BT):
        return dg.loss(params, CONFIG, tokens_BT, weights_BT)

    (ours, weight), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params(), tokens_BT, weights_BT)
    assert float(weight) == weights_BT[:, 1:].sum()
    np.testing.assert_allclose(ours, value, rtol=1e-5)

    optimizer = optax.sgd(1.0)
    step = jax.jit(functools.partial(dg.train_step, config=CONFIG, optimizer=optimizer))
    batch = dg.Batch(jnp.asarray(tokens_BT), jnp.asarray(weights_BT))
    state, metrics = step(dg.init_state(params(), optimizer, jax.random.key(0)), batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    moved = jax.tree.map(lambda old, new: old - new, params(), state.params)
    for tree in (grads, moved):
        got = {name.removeprefix("transformer."): x for name, x in from_params(tree, CONFIG).items()}
        assert got.keys() == gradient.keys()
        for name, true in gradient.items():
            # Sums of 80,000 terms in float32, one of many roundings: up to 1e-5 was seen.
            assert np.abs(got[name] - true).max() <= 1e-4 * max(np.abs(true).max(), 1e-2), name
