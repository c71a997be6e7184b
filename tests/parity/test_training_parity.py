"""The training objective against transformers' GPT2LMHeadModel on the same batch: the loss, and every gradient.

Every parameter is drawn (`drawn_weights.py`), rows are ragged and padded at their right. transformers takes labels, −100
where a weight is 0; what it cannot express, weights between 0 and 1 and packed rows, is worked out with torch from its
logits.

Letters: B rows, T tokens, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_weights import as_params, draw_tensors
from fakes import ODD, TINY, no_dropout
from reference import tensor_error

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import from_params
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.training.loss import loss
from dialogpt_jax.training.optim import adamw
from dialogpt_jax.training.step import init_state, train_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

# Float32 on both sides, sums in another order: what the whole training is held to, per whole tensor.
TOLERANCE = 1e-4

LENGTHS = (24, 17, 9)
CONFIGS = {
    "tied": (no_dropout(TINY), 10.0),
    "untied": (no_dropout(ODD), 10.0),
    "small, two layers": (no_dropout(GPT2Config.small(n_layer=2)), 4.0),
}


def draw_batch(config, choices=(0.0, 1.0)):
    """(tokens_BT, weights_BT): pads hold any id and weigh nothing, and the first token is no target."""
    rng = np.random.default_rng(5)
    shape = (len(LENGTHS), LENGTHS[0])
    tokens_BT = rng.integers(0, config.vocab_size, shape).astype(np.int32)
    weights_BT = rng.choice(choices, shape).astype(np.float32)
    weights_BT[np.arange(shape[1]) >= np.array(LENGTHS)[:, None]] = 0
    weights_BT[:, 0] = 0
    return tokens_BT, weights_BT


def torch_model(tensors, config):
    """transformers' model on a copy of these tensors, in training mode, without dropout."""
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_hf(), attn_implementation="eager"))
    state = {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    network.load_state_dict(state, strict=True)
    return network.train()


def weighted(logits_BTV, tokens_BT, weights_BT):
    """Σ weight · −log p / Σ weight by hand in torch."""
    costs_BT = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), torch.from_numpy(tokens_BT[:, 1:]).long().flatten(), reduction="none"
    )
    weights = torch.from_numpy(weights_BT[:, 1:]).flatten()
    return (costs_BT * weights).sum() / weights.sum()


@functools.partial(jax.jit, static_argnums=1, static_argnames="chunk")
def ours(params, config, tokens_BT, weights_BT, segments_BT=None, *, chunk=7):
    """Loss and gradients; a chunk of 7 does not divide the rows' length."""
    objective = functools.partial(loss, segments_BT=segments_BT, chunk=chunk)
    return jax.value_and_grad(objective, has_aux=True)(params, config, tokens_BT, weights_BT)


def check(found, config, expected, network):
    (value, _), gradients = found
    assert abs(float(value) / expected.item() - 1) < TOLERANCE
    expected.backward()
    gradients = from_params(gradients, config)
    theirs = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    assert set(gradients) == set(theirs)
    for name, gradient in theirs.items():  # whole tensors: the key bias has no gradient, only noise
        assert np.abs(gradient).max() > 0
        assert tensor_error(gradients[name], gradient) < TOLERANCE, name


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_transformers(name):
    config, scale = CONFIGS[name]
    tensors, (tokens_BT, weights_BT) = draw_tensors(config, scale=scale), draw_batch(config)
    network = torch_model(tensors, config)
    ids, labels = torch.from_numpy(tokens_BT).long(), torch.from_numpy(np.where(weights_BT, tokens_BT, -100)).long()
    mask = torch.from_numpy((np.arange(LENGTHS[0]) < np.array(LENGTHS)[:, None]).astype(np.int64))
    expected = network(ids, attention_mask=mask, labels=labels).loss
    params = as_params(tensors, config)
    check(ours(params, config, jnp.asarray(tokens_BT), jnp.asarray(weights_BT)), config, expected, network)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_float_weights_are_a_weighted_mean(name):
    config, scale = CONFIGS[name]
    tensors = draw_tensors(config, scale=scale)
    tokens_BT, weights_BT = draw_batch(config, (0.0, 0.3, 1.0, 2.5))
    network = torch_model(tensors, config)
    logits_BTV = network(torch.from_numpy(tokens_BT).long()).logits
    expected = weighted(logits_BTV, tokens_BT, weights_BT)
    unweighted = weighted(logits_BTV, tokens_BT, (weights_BT > 0).astype(np.float32))
    assert abs(unweighted.item() / expected.item() - 1) > 5 * TOLERANCE  # the weights tell
    params = as_params(tensors, config)
    check(ours(params, config, jnp.asarray(tokens_BT), jnp.asarray(weights_BT)), config, expected, network)


def test_packed_rows_are_the_texts_by_themselves():
    config, scale = CONFIGS["tied"]
    tensors = draw_tensors(config, scale=scale)
    tokens_BT, weights_BT = draw_batch(config, (0.3, 1.0))
    cuts = (10, 6, 4)  # where the second text of each row begins
    segments_BT = (np.arange(LENGTHS[0]) >= np.array(cuts)[:, None]).astype(np.int32)
    segments_BT[np.arange(LENGTHS[0]) >= np.array(LENGTHS)[:, None]] = -1
    network = torch_model(tensors, config)
    total = weight = torch.zeros(())
    for row, (cut, length) in enumerate(zip(cuts, LENGTHS, strict=True)):
        for text in (slice(0, cut), slice(cut, length)):
            one = tokens_BT[row : row + 1, text], weights_BT[row : row + 1, text]
            own = one[1][:, 1:].sum()
            total = total + own * weighted(network(torch.from_numpy(one[0]).long()).logits, *one)
            weight = weight + own
    params = as_params(tensors, config)
    arrays = (jnp.asarray(x) for x in (tokens_BT, weights_BT, segments_BT))
    check(ours(params, config, *arrays), config, total / weight, network)


def test_steps_of_adamw_are_torchs():
    """The whole step: gradient, clipping, AdamW with its two groups. Three steps, the rate another in each."""
    config, scale = CONFIGS["tied"]
    tensors, (tokens_BT, weights_BT) = draw_tensors(config, scale=scale), draw_batch(config)
    network = torch_model(tensors, config)
    named = list(network.named_parameters())
    groups = [
        {
            "params": [p for n, p in named if (n.endswith(".weight") and ".ln_" not in n) == matrix],
            "weight_decay": decay,
        }
        for matrix, decay in ((True, 0.1), (False, 0.0))
    ]
    judge = torch.optim.AdamW(groups, lr=0.0, eps=1e-3)  # so that noise in a gradient of 0 is no step of full size
    optimizer = adamw(lambda step: 1e-3 * (step + 1), weight_decay=0.1, clip=0.5, eps=1e-3)
    step = jax.jit(functools.partial(train_step, config=config, optimizer=optimizer))
    state = init_state(as_params(tensors, config), optimizer, jax.random.key(0))
    labels = torch.from_numpy(np.where(weights_BT, tokens_BT, -100)).long()
    for n in range(3):
        state, metrics = step(state, Batch(jnp.asarray(tokens_BT), jnp.asarray(weights_BT)))
        judge.zero_grad()
        expected = network(torch.from_numpy(tokens_BT).long(), labels=labels).loss
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        assert norm > 1  # clipping is at work
        assert abs(float(metrics["loss"]) / expected.item() - 1) < TOLERANCE
        assert abs(float(metrics["grad_norm"]) / norm.item() - 1) < TOLERANCE
        for group in judge.param_groups:
            group["lr"] = 1e-3 * (n + 1)
        judge.step()
    found = from_params(optax.tree.sub(state.params, as_params(tensors, config)), config)
    for name, parameter in named:  # what was moved, rather than what there is
        moved = parameter.detach().numpy() - tensors[name]
        assert tensor_error(found[name], moved) < TOLERANCE, name
