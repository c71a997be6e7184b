"""The model against transformers' GPT2LMHeadModel: logits at every released shape, loss, gradients, each module alone.

The judge is a float64 run of torch's own model. Our float32 error may be at most twice torch's float32 error, which is
what rounding alone costs; and the weights are drawn so that a wrong model shows (`drawn_weights.py`).

Letters: B rows, T tokens, D model, V vocabulary.
"""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import as_params, draw_tensors, usual_tensors
from fakes import ODD, TINY
from reference import relative_error, tensor_error

from dialogpt_jax import model, modules
from dialogpt_jax.cache import init_cache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import from_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

# Rounding differs by the order of sums: what torch's own float32 error is, and as much again.
TIMES_TORCH = 2.0
# At the usual initialisation, in units of the largest logit.
USUAL_TOLERANCE = 1e-5
# Gradients of whole tensors, in units of their norms.
GRADIENT_TOLERANCE = 1e-4
# A module alone, in units of its largest output.
MODULE_TOLERANCE = 3e-6

LENGTHS = (24, 17)

forward = jax.jit(model.forward, static_argnums=1)


def torch_model(tensors, config: GPT2Config):
    """transformers' model on these tensors, eager attention, no dropout; it shares their memory."""
    theirs = transformers.GPT2Config(**config.to_hf(), attn_implementation="eager")
    with torch.device("meta"):
        network = transformers.GPT2LMHeadModel(theirs)
    state = {name: torch.from_numpy(x) for name, x in tensors.items()}
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    network.load_state_dict(state, strict=True, assign=True)
    network.tie_weights()
    return network.eval()


def draw_ids(config, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, LENGTHS[0])).astype(np.int32)


def real(logits_BTV):
    """The rows up to their lengths, one after the other: what stands at a pad is nobody's concern."""
    return np.concatenate([np.asarray(row[:length]) for row, length in zip(logits_BTV, LENGTHS, strict=True)])


def torch_logits(network, ids_BT):
    with torch.no_grad():
        return network(torch.from_numpy(ids_BT).long()).logits.numpy()


def prefill(params, config, tokens_BT):
    """The same logits by way of a cache."""
    cache = init_cache(config, *tokens_BT.shape, jnp.float32)
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    x_BTD, _ = model.hidden(params, config, tokens_BT, positions_BT, cache)
    return model.logits(params, config, x_BTD)[..., : config.vocab_size]


def errors(tensors, config):
    """(ours, ours with a cache, torch's): float32 against torch's float64 run."""
    ids_BT = draw_ids(config)
    params = as_params(tensors, config)
    plain = real(forward(params, config, jnp.asarray(ids_BT)))
    cached = real(jax.jit(prefill, static_argnums=1)(params, config, jnp.asarray(ids_BT)))
    del params
    gc.collect()
    network = torch_model(tensors, config)
    single = real(torch_logits(network, ids_BT))
    exact = real(torch_logits(network.double(), ids_BT))
    return tuple(relative_error(logits, exact) for logits in (plain, cached, single))


ODD_ONES = {
    "tiny": (TINY, 10.0),
    "odd": (ODD, 10.0),
    "erf GELU": (dataclasses.replace(TINY, n_embd=40, n_head=5, activation_function="gelu"), 10.0),
    "relu, untied": (
        GPT2Config(
            vocab_size=300,
            n_positions=24,
            n_embd=36,
            n_layer=4,
            n_head=2,
            n_inner=17,
            activation_function="relu",
            tie_word_embeddings=False,
            scale_attn_by_inverse_layer_idx=True,
            eos_token_id=0,
        ),
        10.0,
    ),
}
RELEASED = {
    "small": (GPT2Config.small(), 4.0),
    "small, untied": (GPT2Config.small(tie_word_embeddings=False), 4.0),
    "medium": (GPT2Config.medium(), 4.0),
    "large": (GPT2Config.large(), 4.0),
}


LARGEST = pytest.param("large", marks=pytest.mark.slow)  # a minute or more, and 10 GB


@pytest.mark.parametrize("name", [*ODD_ONES, *(name for name in RELEASED if name != "large"), LARGEST])
def test_logits(name):
    config, scale = (ODD_ONES | RELEASED)[name]
    plain, cached, single = errors(draw_tensors(config, scale=scale), config)
    print(f"{name}: ours {plain:.2e}, with a cache {cached:.2e}, torch {single:.2e}")
    assert single > 0
    assert plain <= TIMES_TORCH * single
    assert cached <= TIMES_TORCH * single


@pytest.mark.parametrize("name", ["tiny", "odd", "small"])
def test_logits_at_the_usual_initialisation(name):
    config, _ = (ODD_ONES | RELEASED)[name]
    plain, cached, _ = errors(usual_tensors(config), config)
    assert plain <= USUAL_TOLERANCE
    assert cached <= USUAL_TOLERANCE


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tied", "untied"])
def test_loss_and_gradients(config):
    tensors, ids_BT = draw_tensors(config), draw_ids(config)
    network = torch_model({name: x.copy() for name, x in tensors.items()}, config)
    labels = torch.from_numpy(ids_BT).long()
    expected = network(labels, labels=labels).loss
    expected.backward()

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        logits_BTV = jax.nn.log_softmax(model.forward(params, config, jnp.asarray(ids_BT))[:, :-1])
        return -jnp.take_along_axis(logits_BTV, jnp.asarray(ids_BT)[:, 1:, None], axis=-1).mean()

    loss, gradients = ours(as_params(tensors, config))
    assert abs(float(loss) / expected.item() - 1) < GRADIENT_TOLERANCE
    found = from_params(gradients, config)
    theirs = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    assert set(found) == set(theirs)
    for name, gradient in theirs.items():  # whole tensors: the key bias has no gradient, only noise
        assert tensor_error(found[name], gradient) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("name", ["ln_1", "attn", "mlp", "block"])
def test_each_module_alone(config, name):
    tensors = draw_tensors(config)
    x_BTD = np.random.default_rng(3).normal(size=(2, 12, config.n_embd)).astype(np.float32)
    block, params = torch_model(tensors, config).transformer.h[1].double(), as_params(tensors, config)["h_1"]
    module = {
        "ln_1": modules.LayerNorm(config),
        "attn": modules.Attention(config, 1),
        "mlp": modules.MLP(config),
        "block": modules.Block(config, 1),
    }[name]
    arguments = {"ln_1": (), "mlp": (None,)}.get(name, (None, None, None, None))
    own = params if name == "block" else params[name]
    got = jax.jit(lambda own, x_BTD: module.apply({"params": own}, x_BTD, *arguments))(own, x_BTD)
    with torch.no_grad():
        # Called by itself, a module gets its mask from outside: what is added to the scores.
        ahead = torch.full((12, 12), -torch.inf, dtype=torch.float64).triu(1)[None, None]
        masked = {"attention_mask": ahead} if name in ("attn", "block") else {}
        theirs = block if name == "block" else getattr(block, name)
        expected = theirs(torch.from_numpy(x_BTD).double(), **masked)
    got, expected = (x[0] if isinstance(x, tuple) else x for x in (got, expected))
    assert relative_error(got, expected.numpy()) < MODULE_TOLERANCE


def swap_norms(tensors):
    a, b = "transformer.h.1.ln_1", "transformer.h.1.ln_2"
    kinds = ("weight", "bias")
    return tensors | {f"{x}.{k}": tensors[f"{y}.{k}"] for x, y in ((a, b), (b, a)) for k in kinds}


def without(name, start=0):
    def plant(tensors):
        changed = tensors[name].copy()
        changed[start:] = 0
        return tensors | {name: changed}

    return plant


BUGS = {
    "ln_1 and ln_2 swapped": (swap_norms, {}),
    "value bias dropped": (without("transformer.h.1.attn.c_attn.bias", 2 * TINY.n_embd), {}),
    "MLP bias dropped": (without("transformer.h.1.mlp.c_fc.bias"), {}),
    "erf GELU": (dict, {"activation_function": "gelu"}),
    "epsilon 1e-6": (dict, {"layer_norm_epsilon": 1e-6}),
    "positions off by one": (
        lambda t: t | {"transformer.wpe.weight": np.roll(t["transformer.wpe.weight"], 1, axis=0).copy()},
        {},
    ),
    "attention's scale missing": (dict, {"scale_attn_weights": False}),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_exceeds_the_bound_ten_times_over(name):
    plant, fields = BUGS[name]
    tensors, ids_BT = draw_tensors(TINY), draw_ids(TINY)
    single = real(torch_logits(torch_model(tensors, TINY), ids_BT))
    exact = real(torch_logits(torch_model(tensors, TINY).double(), ids_BT))
    config = dataclasses.replace(TINY, **fields)
    wrong = real(forward(as_params(plant(tensors), config), config, jnp.asarray(ids_BT)))
    assert relative_error(wrong, exact) > 10 * TIMES_TORCH * relative_error(single, exact)
