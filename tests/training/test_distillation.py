"""Learning from teachers: the loss against its definition and jax's own gradient; a run; what is refused.

Letters: B rows, T tokens, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_weights import draw_params
from fakes import ODD, TINY

from dialogpt_jax import model
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.data.examples import examples
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.run.fit import TrainingError, fit
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.training.distillation import Teacher
from dialogpt_jax.training.loss import summed_loss
from dialogpt_jax.training.step import init_state, train_step

# float32: a sum of some 20 cross-entropies of about 5 over a vocabulary of 60.
TOLERANCE = 2e-5

CONFIG = dataclasses.replace(  # its vocabulary is padded: pads must take no share
    ODD, n_layer=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
)
WIDE = dataclasses.replace(CONFIG, n_embd=2 * CONFIG.n_embd, n_layer=1)
SHORT = dataclasses.replace(CONFIG, n_positions=CONFIG.n_positions // 2)
PARAMS = draw_params(CONFIG)


def draw_teacher(config, seed) -> Teacher:
    """One that is far from uniform, and far from the others: its logits are spread."""
    params = draw_params(config, seed=seed, scale=30.0)
    return Teacher({**params, "ln_f": jax.tree.map(lambda x: 20 * x, params["ln_f"])}, config)


TEACHERS = [draw_teacher(WIDE, 1), draw_teacher(CONFIG, 2)]
TOKENS_BT = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, 11)).astype(np.int32)
WEIGHTS_BT = np.random.default_rng(1).random((3, 11)).astype(np.float32) * (np.arange(11) < [[11], [6], [2]])


def taught(params, teachers, share, *, segments_BT=None, chunk=4):
    return summed_loss(
        params,
        CONFIG,
        jnp.asarray(TOKENS_BT),
        jnp.asarray(WEIGHTS_BT),
        segments_BT=segments_BT,
        teachers=teachers,
        share=share,
        chunk=chunk,
    )[0]


def defined(params, teachers, share):
    """Σ weight · cross-entropy to (1 − share) · one-hot + share · mean of softmaxes, by whole logits."""
    log_BTV = jax.nn.log_softmax(model.forward(params, CONFIG, TOKENS_BT))[:, :-1]
    thought = [jax.nn.softmax(model.forward(t.params, t.config, TOKENS_BT))[:, :-1] for t in teachers]
    target_BTV = jax.nn.one_hot(TOKENS_BT[:, 1:], CONFIG.vocab_size)
    if teachers:
        target_BTV = (1 - share) * target_BTV + share * sum(thought) / len(thought)
    return -(WEIGHTS_BT[:, 1:, None] * target_BTV * log_BTV).sum()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_loss_and_gradient_are_those_of_the_definition(count, share):
    teachers = TEACHERS[:count]
    value, grads = jax.value_and_grad(taught)(PARAMS, teachers, share)
    expected, reference = jax.value_and_grad(defined)(PARAMS, teachers, share)
    assert float(value) == pytest.approx(float(expected), rel=TOLERANCE)
    assert float(taught(PARAMS, teachers, share)) == pytest.approx(float(value), rel=TOLERANCE)  # without a gradient
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE * max(float(np.abs(wanted).max()), 1.0))


def test_a_model_that_teaches_itself_has_nothing_to_learn():
    grads = jax.grad(taught)(PARAMS, [Teacher(PARAMS, CONFIG)], 1.0)
    untaught = jax.grad(taught)(PARAMS, [], 0.0)
    assert float(optax.tree.norm(grads)) < 1e-4 * float(optax.tree.norm(untaught))


def test_no_gradient_flows_into_a_teacher():
    def of_teacher(params):
        return taught(PARAMS, [Teacher(params, CONFIG)], 0.5)

    assert float(optax.tree.norm(jax.grad(of_teacher)(TEACHERS[1].params))) == 0


def test_a_teacher_sees_no_further_than_a_packed_dialogue():
    segments_BT = jnp.asarray(np.repeat([[0] * 5 + [1] * 6], 3, axis=0).astype(np.int32))
    whole = taught(PARAMS, TEACHERS, 1.0)
    apart = taught(PARAMS, TEACHERS, 1.0, segments_BT=segments_BT)
    parts = 0.0
    for part in (slice(0, 5), slice(5, 11)):
        both = summed_loss(
            PARAMS, CONFIG, TOKENS_BT[:, part], jnp.asarray(WEIGHTS_BT[:, part]), teachers=TEACHERS, share=1.0
        )
        parts += float(both[0])
    assert float(apart) == pytest.approx(parts, rel=TOLERANCE)
    assert float(apart) != pytest.approx(float(whole), rel=1e-3)


def test_a_step_on_many_devices_is_that_of_one():
    optimizer = optax.sgd(0.1)
    tokens_BT, weights_BT = np.resize(TOKENS_BT, (8, 11)), np.resize(WEIGHTS_BT, (8, 11))

    def step(mesh):
        state = init_state(jax.tree.map(jnp.copy, PARAMS), optimizer, jax.random.key(0))
        kept = {"config": CONFIG, "optimizer": optimizer, "mesh": mesh, "teacher_share": 0.6}
        run = jax.jit(lambda s, b, t: train_step(s, b, teachers=t_of(t), **kept))
        return run(state, Batch(tokens_BT, weights_BT), [teacher.params for teacher in TEACHERS])

    def t_of(params):
        return [Teacher(p, teacher.config) for p, teacher in zip(params, TEACHERS, strict=True)]

    (one, said), (many, told) = step(None), step(make_mesh({"data": 8}))
    assert float(said["loss"]) == pytest.approx(float(told["loss"]), rel=TOLERANCE)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)


def run(teachers, tmp_path=None, *, steps=40, **named):
    rng = np.random.default_rng(0)
    data = examples(
        [[rng.integers(0, 50, 4).tolist() for _ in range(3)] for _ in range(8)], eos=CONFIG.eos_token_id, max_length=16
    )
    options = TrainOptions(steps=steps, batch_size=8, learning_rate=3e-3, warmup=1, buckets=1, teacher_share=1.0)
    mesh = make_mesh(devices=jax.devices()[:1])
    return fit(
        PARAMS, CONFIG, data, options, mesh=mesh, teachers=teachers, out=tmp_path, report=lambda line: None, **named
    )


def test_a_run_brings_a_student_nearer_to_its_teacher(tmp_path):
    def distance(params):
        log_BTV = jax.nn.log_softmax(model.forward(params, CONFIG, TOKENS_BT))
        thought_BTV = jax.nn.softmax(model.forward(TEACHERS[0].params, WIDE, TOKENS_BT))
        return float((thought_BTV * (jnp.log(thought_BTV) - log_BTV)).sum(-1).mean())

    fitted, alone = run(TEACHERS[:1]), run([])
    assert distance(fitted.params) < 0.92 * distance(PARAMS)
    assert distance(fitted.params) < 0.92 * distance(alone.params)


@pytest.mark.long
def test_a_run_goes_on_with_its_own_teachers_only(tmp_path):
    run(TEACHERS[:1], tmp_path, steps=2)
    with pytest.raises(TrainingError, match="teachers"):
        run(TEACHERS[1:], tmp_path, steps=4, resume=True)
    with pytest.raises(TrainingError, match="teachers"):
        run([], tmp_path, steps=4, resume=True)
    assert int(run(TEACHERS[:1], tmp_path, steps=4, resume=True).state.step) == 4


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (Teacher(draw_params(TINY), TINY), "vocab_size"),
        (Teacher(PARAMS, dataclasses.replace(CONFIG, eos_token_id=3)), "eos_token_id"),
        (Teacher(PARAMS, WIDE), "h_|blocks|shape"),
        (Teacher(draw_params(SHORT), SHORT), "positions"),
    ],
)
def test_a_teacher_that_cannot_teach_is_one_line(teacher, said):
    with pytest.raises(ValueError, match=said) as error:
        run([teacher])
    assert "\n" not in str(error.value)


def test_what_is_no_teacher_is_one_line():
    with pytest.raises(TypeError, match="Teacher"):
        run([PARAMS])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "half"])
def test_a_share_that_cannot_be(share):
    with pytest.raises(ValueError, match="teacher_share"):
        TrainOptions(teacher_share=share)
