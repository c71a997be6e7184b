"""Training a ranker: the loss is that of the two scores, a run learns a rule, and goes on bit for bit where it stopped.

Letters: B rows, T tokens.
"""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from ranking.rankers import CONFIG, TOKENIZER, draw_ranker

import dialogpt_jax as dg
from dialogpt_jax.data.batches import collate
from dialogpt_jax.data.pairs import make_pairs
from dialogpt_jax.evaluation.pair_accuracy import make_pair_evaluation, measure_margins
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.parallel.rules import shardings
from dialogpt_jax.score_row import trunk_of
from dialogpt_jax.training.pairwise import summed_pair_loss

# Margins of scores about 2 wide, in float32 and by programs of other shapes.
TOLERANCE = 2e-5
ONE = make_mesh(devices=jax.devices()[:1])
RANKER = draw_ranker()
WORDS = ["Hello", "rain", "evening", "news", "fine", "today", "doing", "much"]


def drawn(count: int, seed: int) -> list[dg.Pair]:
    """The better reply says again what was asked."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        asked, other = rng.choice(WORDS, 2, replace=False)
        pairs.append(dg.Pair([f"Do you like {asked}?"], f"{asked}", f"{other}"))
    return pairs


EXAMPLES = make_pairs(drawn(40, 0), TOKENIZER)
OPTIONS = dg.TrainOptions(
    steps=12, batch_size=8, learning_rate=1e-2, warmup=2, buckets=1, log_every=3, save_every=4, evaluate_every=6, seed=7
)


def run(options=OPTIONS, *, params=RANKER.params, **named) -> dg.Fitted:
    how = {"mesh": ONE, "objective": dg.PAIRWISE, "report": lambda line: None} | named
    return dg.fit(params, CONFIG, EXAMPLES, options, **how)


def values(fitted):
    return jax.tree.leaves(jax.device_get((fitted.state.step, fitted.state.params, fitted.state.opt_state)))


@pytest.fixture(scope="module")
def unbroken():
    return run(evaluate=make_pair_evaluation(CONFIG, EXAMPLES))


def logit(probability):
    probability = np.asarray(probability, np.float64)
    return np.log(probability / (1 - probability))


def test_a_margin_is_the_difference_of_two_scores_and_the_loss_its_softplus():
    pairs = [*drawn(3, 1), dg.Pair(["Hello, how are you?", "I am fine."], "No", "What are you doing this evening?")]
    examples = make_pairs(pairs, TOKENIZER)
    scores = [logit(RANKER.score(pair.turns, [pair.better, pair.worse])) for pair in pairs]
    expected = np.array([better - worse for better, worse in scores])
    margins_P = measure_margins(RANKER.params, CONFIG, examples, rows=4)
    np.testing.assert_allclose(margins_P, expected, atol=TOLERANCE)
    assert np.abs(expected).max() > 0.3
    batch = collate(examples, max(len(example.tokens_T) for example in examples))
    batch = batch._replace(weights_BT=batch.weights_BT * np.array([1, 0, 0.5, 1], np.float32)[:, None])
    total, weight = summed_pair_loss(
        RANKER.params, CONFIG, batch.tokens_BT, batch.weights_BT, segments_BT=batch.segments_BT
    )
    np.testing.assert_allclose(total, (np.log1p(np.exp(-expected)) * [1, 0, 0.5, 1]).sum(), atol=TOLERANCE)
    assert float(weight) == 2.5
    figures = make_pair_evaluation(CONFIG, examples)(RANKER.params)
    np.testing.assert_allclose(figures["valid_loss"], np.log1p(np.exp(-expected)).mean(), atol=TOLERANCE)
    assert figures["valid_accuracy"] == (expected > 0).mean()


def test_a_run_learns_which_is_better(unbroken):
    first, *_, last = [entry for entry in unbroken.history if "valid_accuracy" in entry]
    assert first["step"] == 0
    assert last["valid_loss"] < 0.8 * first["valid_loss"]
    assert last["valid_accuracy"] > max(0.7, first["valid_accuracy"])
    better = dg.Ranker(unbroken.params, unbroken.config, TOKENIZER)
    assert better.config == CONFIG
    moved = np.abs(np.asarray(better.params["score"]["kernel"]) - RANKER.params["score"]["kernel"])
    assert (moved > 0).all()


def test_a_run_that_was_stopped_ends_where_an_unbroken_one_does(unbroken, tmp_path):
    told = []

    def stop(line):
        told.append(line)
        if line.startswith("step 6/"):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(out=tmp_path, report=stop)
    assert 6 < int(stopped.state.step) < 12
    assert not any("ppl" in line for line in told)
    again = run(out=tmp_path, resume=True, params=draw_ranker(3).params)
    for one, other in zip(values(again), values(unbroken), strict=True):
        np.testing.assert_array_equal(one, other)
    trunk = trunk_of(RANKER.params)
    with pytest.raises(dg.CheckpointMismatch, match=r"it holds params.score.kernel, .*, which is not wanted"):
        dg.fit(trunk, CONFIG, EXAMPLES, OPTIONS, mesh=ONE, out=tmp_path, resume=True, report=lambda line: None)


def test_wrong_arguments_are_one_line_each():
    trunk = trunk_of(RANKER.params)
    with pytest.raises(ValueError, match="no scoring row"):
        run(params=trunk)
    with pytest.raises(ValueError, match="a score/kernel, against this config"):
        dg.fit(RANKER.params, CONFIG, EXAMPLES, OPTIONS, mesh=ONE)
    with pytest.raises(TypeError, match="objective is 'pairs'"):
        run(objective="pairs")
    with pytest.raises(ValueError, match="teachers are for a language model"):
        run(teachers=[dg.Teacher(trunk, CONFIG)])
    plain = dg.make_examples([["Hi!", "Hello."]], TOKENIZER)
    with pytest.raises(ValueError, match="make the examples by `make_pairs`"):
        dg.fit(RANKER.params, CONFIG, plain, OPTIONS, mesh=ONE, objective=dg.PAIRWISE, report=lambda line: None)
    long = make_pairs([dg.Pair(["rain " * 40], "news", "fine")], TOKENIZER)
    with pytest.raises(dg.TrainingError, match="the model's context is 64"):
        dg.fit(RANKER.params, CONFIG, long, OPTIONS, mesh=ONE, objective=dg.PAIRWISE)


def test_every_parameter_of_a_ranker_has_its_place_on_a_mesh():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = shardings(jax.eval_shape(lambda: RANKER.params), mesh)
    assert placed["score"]["kernel"].spec == jax.sharding.PartitionSpec(None, None)


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_does():
    options = dataclasses.replace(OPTIONS, steps=2, warmup=1, accumulate=2, log_every=1)
    one, many = run(options), run(options, mesh=make_mesh({"data": 2, "fsdp": 2}, devices=jax.devices()[:4]))
    for name in ("loss", "targets", "grad_norm"):
        figures = [[entry[name] for entry in fitted.history if name in entry] for fitted in (one, many)]
        assert len(figures[0]) == 2
        np.testing.assert_allclose(*figures, rtol=1e-4)
    for a, b in zip(*[jax.tree.leaves(jax.device_get(trunk_and_row(f.params))) for f in (one, many)], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def trunk_and_row(params):
    """Without the bias of the keys, whose true gradient is zero: Adam makes steps of its noise."""
    return {"score": params["score"], "wpe": params["wpe"], "mlp": params["h_0"]["mlp"], "ln_f": params["ln_f"]}
