"""The mapping table: exact both ways, checked against a second GPT-2 that knows Hugging Face's names and not ours."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fakes import ODD, TINY
from reference import checkpoint, logits, relative_error

from dialogpt_jax.config import ConfigError, GPT2Config
from dialogpt_jax.convert import mapping
from dialogpt_jax.convert.infer import GuessedHeads, infer_config
from dialogpt_jax.convert.mapping import (
    MappingError,
    NonFiniteWeights,
    UntiedHead,
    from_params,
    to_params,
)
from dialogpt_jax.convert.names import same_bits
from dialogpt_jax.model import forward, init_params

# Float32 against float64: errors here are about 3e-6 of the largest logit; a wrong tensor moves it by 1e-2 and more.
TOLERANCE = 3e-5
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
BY_64 = GPT2Config(vocab_size=70, n_positions=9, n_embd=128, n_layer=2, n_head=2, eos_token_id=69)


def draw_checkpoint(config, dtype=np.float32, seed=0):
    """Hugging Face's tensors of a config, with every one of them drawn; shapes as transformers has them."""
    d, f, rng = config.n_embd, config.mlp_dim, np.random.default_rng(seed)
    shapes = {"transformer.wte.weight": (config.vocab_size, d), "transformer.wpe.weight": (config.n_positions, d)}
    for i in range(config.n_layer):
        block = {"ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,)}
        block |= {"attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,)}
        block |= {"attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,)}
        block |= {
            "mlp.c_fc.weight": (d, f),
            "mlp.c_fc.bias": (f,),
            "mlp.c_proj.weight": (f, d),
            "mlp.c_proj.bias": (d,),
        }
        shapes |= {f"transformer.h.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)

    def draw(name, shape):
        gain = ".ln_" in name and name.endswith("weight")
        return (gain + (0.2 if len(shape) == 2 else 0.1) * rng.normal(size=shape)).astype(dtype)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def draw_ours(config):
    """Parameters in our layout, pads included, every number drawn."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def error_against_reference(config, tensors):
    tokens_BT = np.random.default_rng(1).integers(0, config.vocab_size, (2, 11))
    params, report = to_params(tensors, config)
    ours = forward(jax.tree.map(jnp.asarray, params), report.config, jnp.asarray(tokens_BT))
    return relative_error(ours, logits(checkpoint(tensors), report.config, tokens_BT))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_a_converted_model_computes_what_the_reference_does(config):
    assert error_against_reference(config, draw_checkpoint(config)) < TOLERANCE


def swapped(first, second):
    """The table with two rows' paths exchanged."""
    exchange = {first: second, second: first}
    return tuple((name, exchange.get(path, path), pattern) for name, path, pattern in mapping.TABLE)


def rewritten(name, pattern):
    """The table with another pattern in the rows whose name ends so."""
    return tuple((n, path, pattern if n.endswith(name) else p) for n, path, p in mapping.TABLE)


@pytest.mark.parametrize(
    "table",
    [
        swapped("h_{i}.ln_1.scale", "h_{i}.ln_2.scale"),
        swapped("h_{i}.ln_1.bias", "h_{i}.ln_2.bias"),
        swapped("h_{i}.attn.c_proj.bias", "h_{i}.mlp.c_proj.bias"),
        swapped("ln_f.bias", "h_{i}.ln_1.bias"),
        swapped("wte.embedding", "lm_head.kernel"),
        rewritten("attn.c_proj.weight", "D (H K) -> D H K"),
        rewritten("attn.c_attn.weight", "D (3 K H) -> 3 H K D"),
        rewritten("attn.c_attn.weight", "D (H 3 K) -> 3 H K D"),
        rewritten("attn.c_attn.bias", "(H 3 K) -> 3 H K"),
    ],
    ids=["gains", "biases", "projections", "last norm", "head", "square", "heads", "qkv", "qkv bias"],
)
def test_a_wrong_row_of_the_table_shows(monkeypatch, table):
    config = dataclasses.replace(TINY, tie_word_embeddings=False, n_layer=1)
    tensors = draw_checkpoint(config)
    assert error_against_reference(config, tensors) < TOLERANCE
    monkeypatch.setattr(mapping, "TABLE", table)
    assert error_against_reference(config, tensors) > 10 * TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_there_and_back_is_bit_for_bit(config, dtype):
    tensors = draw_checkpoint(config, dtype)
    tensors["transformer.wte.weight"][3, 4] = -0.0
    params, report = to_params(tensors, config)
    assert_same(from_params(params, report.config), tensors)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_back_and_there_is_bit_for_bit(config):
    params = draw_ours(config)
    theirs = from_params(params, config)
    assert all(array.flags.c_contiguous for array in theirs.values())  # or a writer would save it scrambled
    there, _ = to_params(theirs, config)
    assert jax.tree.structure(there) == jax.tree.structure(params)
    for name, leaf in (("wte", "embedding"), ("lm_head", "kernel")):  # the pad comes back as zeros
        if name in params:
            assert not there[name][leaf][config.vocab_size :].any()
            assert params[name][leaf][config.vocab_size :].all()
            params[name][leaf][config.vocab_size :] = 0
    assert jax.tree.all(jax.tree.map(same_bits, there, params))


def test_names_and_shapes_are_those_of_transformers():
    expected = {name: array.shape for name, array in draw_checkpoint(ODD).items()}
    assert {row.name: row.shape for row in mapping.rows(ODD)} == expected
    for config, count in ((GPT2Config.small(), 124_439_808), (GPT2Config.large(), 774_030_080)):
        assert sum(int(np.prod(row.shape)) for row in mapping.rows(config)) == count


def flax(tensors):
    """The names and layout of transformers' Flax GPT-2: a kernel is torch's weight transposed."""
    out = {}
    for name, array in tensors.items():
        stem, leaf = name.rsplit(".", 1)
        if leaf == "weight":
            kind = "embedding" if stem.endswith(("wte", "wpe")) else "scale" if ".ln_" in stem else "kernel"
            leaf, array = kind, array.T if kind == "kernel" else array
        out[f"{stem}.{leaf}".replace(".", "/")] = array
    return out


def buffers(config, dtype=np.float16):
    n = config.n_positions
    for i in range(config.n_layer):
        yield f"h.{i}.attn.bias", np.tril(np.ones((1, 1, n, n), dtype))
        yield f"h.{i}.attn.masked_bias", np.array(-1e4, dtype)


ORIGINS = {
    "flax": flax,
    "flax with params": lambda t: {f"params/{name}": array for name, array in flax(t).items()},
    "data parallel": lambda t: {f"module.{name}": array for name, array in t.items()},
    "compiled": lambda t: {f"_orig_mod.module.{name}": array for name, array in t.items()},
    "bare trunk": lambda t: {name.removeprefix("transformer."): array for name, array in t.items()},
    "doubled": lambda t: {f"transformer.{name}": array for name, array in t.items()},
    "old norms": lambda t: {
        name.replace("ln_1.weight", "ln_1.gamma").replace("ln_1.bias", "ln_1.beta"): array for name, array in t.items()
    },
    "microsoft": lambda t: {name.replace("lm_head.", "lm_head.decoder."): array for name, array in t.items()},
    "buffers": lambda t: {**t, **{f"module.transformer.{name}": array for name, array in buffers(ODD)}},
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_names_of_every_origin_are_understood_and_reported(origin):
    tensors = draw_checkpoint(ODD)
    renamed = ORIGINS[origin](tensors)
    assert renamed.keys() != tensors.keys()
    params, report = to_params(renamed, ODD)
    assert_same(from_params(params, report.config), tensors)
    assert infer_config(renamed, n_head=ODD.n_head) == dataclasses.replace(infer_config(tensors, n_head=3))
    told = {old for old, _ in report.renamed} | {old for old, _ in report.dropped}
    assert told == renamed.keys() - tensors.keys()
    assert len(report.lines()) < 30  # a line a kind, not one a layer


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_head.decoder.weight", "module.lm_head.weight"])
def test_a_head_equal_to_the_embedding_is_tied(name):
    tensors = draw_checkpoint(TINY)
    params, report = to_params({**tensors, name: tensors["transformer.wte.weight"].copy()}, TINY)
    assert "lm_head" not in params
    assert report.config == TINY
    assert [old for old, _ in report.dropped] == [name]
    assert_same(from_params(params, TINY), tensors)


@pytest.mark.parametrize("value", [1.0, -0.0])
def test_a_head_that_differs_is_kept_and_the_config_follows(value):
    tensors = draw_checkpoint(TINY)
    tensors["transformer.wte.weight"][-1, -1] = 0.0
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    tensors["lm_head.weight"][-1, -1] = value
    with pytest.warns(UntiedHead, match=r"differs from the token embedding in 1 of 1952 values, and the config says"):
        params, report = to_params(tensors, TINY)
    assert report.untied
    assert report.config == dataclasses.replace(TINY, tie_word_embeddings=False)
    assert any("tie_word_embeddings" in line for line in report.lines())
    assert_same(from_params(params, report.config), tensors)
    assert error_against_reference(report.config, tensors) < TOLERANCE  # and no warning where the config says so


def test_an_equal_head_stays_separate_where_the_config_says_so():
    config = dataclasses.replace(TINY, tie_word_embeddings=False)
    tensors = draw_checkpoint(TINY)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    params, report = to_params(tensors, config)
    assert not report.untied
    assert_same(from_params(params, report.config), tensors)


def test_the_whole_difference_is_one_error():
    tensors = draw_checkpoint(TINY)
    del tensors["transformer.ln_f.bias"]
    tensors["module.transformer.h.1.ln_1.weight"] = tensors.pop("transformer.h.1.ln_1.weight")[:5]
    tensors["transformer.h.0.mlp.c_fc.bias"] = tensors["transformer.h.0.mlp.c_fc.bias"].astype(np.int64)
    tensors["score.weight"] = np.zeros((1, 32), np.float32)
    tensors["transformer.h.2.attn.bias"] = np.zeros((32,), np.float32)  # no square: not the buffer of that name
    with pytest.raises(MappingError) as caught:
        to_params(tensors, TINY)
    first, *lines = str(caught.value).split("\n")
    assert first.startswith("5 tensors differ")
    assert sorted(lines) == sorted(
        [
            "- transformer.ln_f.bias (32,)",
            "- transformer.h.1.ln_1.weight (32,)",
            "+ transformer.h.1.ln_1.weight (5,)",
            "- transformer.h.0.mlp.c_fc.bias (128,)",
            "+ transformer.h.0.mlp.c_fc.bias (128,) int64",
            "+ score.weight (1, 32)",
            "+ transformer.h.2.attn.bias (32,)",
        ]
    )


def test_a_transposed_matrix_is_misshapen_and_not_guessed():
    tensors = draw_checkpoint(TINY)
    tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].T
    with pytest.raises(MappingError, match="1 tensor differs from"):
        to_params(tensors, TINY)


def test_two_names_for_one_tensor_must_agree():
    tensors = draw_checkpoint(TINY)
    to_params({**tensors, "ln_f.bias": tensors["transformer.ln_f.bias"].copy()}, TINY)
    with pytest.raises(MappingError, match=r"ln_f.bias and transformer.ln_f.bias are both"):
        to_params({**tensors, "ln_f.bias": tensors["transformer.ln_f.bias"] + 1}, TINY)


def test_params_that_are_not_the_config_s_are_refused():
    params = draw_ours(TINY)
    with pytest.raises(MappingError, match="differ"):
        from_params(params, dataclasses.replace(TINY, n_layer=2))
    with pytest.raises(MappingError, match=r"- lm_head\.kernel"):
        from_params(params, dataclasses.replace(TINY, tie_word_embeddings=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_are_a_warning_with_their_number(dtype):
    tensors = draw_checkpoint(TINY, dtype)
    tensors["transformer.h.2.mlp.c_fc.weight"][:2, 0] = np.nan
    tensors["transformer.wpe.weight"][0, 0] = np.inf
    with pytest.warns(NonFiniteWeights, match=r"3 weights are NaN or infinite, in transformer.wpe.weight, .*h\.2"):
        _, report = to_params(tensors, TINY)
    assert dict(report.nonfinite) == {"transformer.h.2.mlp.c_fc.weight": 2, "transformer.wpe.weight": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_params(draw_checkpoint(TINY, dtype), TINY)


def test_a_config_is_inferred_from_the_shapes():
    with pytest.warns(GuessedHeads, match=r"taken as \d+, of 64 dimensions .* no released model's: .*--heads N"):
        assert infer_config(draw_checkpoint(BY_64)) == BY_64
    assert infer_config(draw_checkpoint(BY_64), n_head=BY_64.n_head) == BY_64
    tensors = draw_checkpoint(ODD)
    assert infer_config(tensors, n_head=3) == dataclasses.replace(ODD, eos_token_id=ODD.vocab_size - 1)
    with pytest.raises(MappingError, match=r"width 30: give it \(--heads N\), or a config.json"):
        infer_config(tensors)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError, match=f"n_head is {wrong}"):
            infer_config(tensors, n_head=wrong)
    del tensors["transformer.wpe.weight"]
    with pytest.raises(MappingError, match=r"not a GPT-2: no matrix transformer.wpe.weight"):
        infer_config(tensors)


@pytest.mark.parametrize(("layers", "heads"), [(12, 12), (24, 16), (36, 20), (48, 25)])
def test_the_heads_of_a_released_model_are_known_and_those_of_another_depth_a_guess(layers, heads):
    def shapes(count):
        names = {f"transformer.h.{i}.mlp.c_fc.weight": (64 * heads, 256 * heads) for i in range(count)}
        names |= {"transformer.wte.weight": (9, 64 * heads), "transformer.wpe.weight": (5, 64 * heads)}
        return {name: np.broadcast_to(np.float16(0), shape) for name, shape in names.items()}

    config = infer_config(shapes(layers))  # a warning would be an error
    assert (config.n_layer, config.n_head) == (layers, heads)
    with pytest.warns(GuessedHeads, match=f"{layers - 1} layers of width {64 * heads} are no released model's"):
        infer_config(shapes(layers - 1))


@pytest.mark.parametrize("layers", [4, 7, 39, 10**9])
def test_a_config_of_more_layers_than_there_are_is_refused_before_anything_is_laid_out(monkeypatch, layers):
    laid, most = [], 12 * 6 + 5  # twice as many tensors as there are, and no more

    def lay(*args, row=mapping._row):
        laid.append(args)
        assert len(laid) <= most  # here, before it fills the memory
        return row(*args)

    monkeypatch.setattr(mapping, "_row", lay)
    config = dataclasses.replace(TINY, n_layer=layers)
    with pytest.raises(MappingError, match=r"n_layer \d+, and the file has 3 layers|tensors differ"):
        to_params(draw_checkpoint(TINY), config)


@pytest.mark.parametrize("number", ["999999999999", "9" * 5000, "38"])
def test_a_layer_s_number_beyond_the_tensors_is_an_unknown_name(number):
    tensors = {**draw_checkpoint(BY_64), f"transformer.h.{number}.ln_1.weight": np.ones(64, np.float32)}
    with pytest.raises(MappingError, match=f"\\+ transformer.h.{number}.ln_1.weight|missing|differ"):
        to_params(tensors, infer_config(tensors, n_head=1))


def test_names_are_shown_with_their_controls_escaped_and_a_long_difference_is_cut():
    tensors = {**draw_checkpoint(TINY), "\x1b]0;title\x07\n": np.zeros(3, np.float32)}
    with pytest.raises(MappingError) as caught:
        to_params(tensors, TINY)
    assert str(caught.value).split("\n")[1:] == [r"+ \x1b]0;title\x07\n (3,)"]
    tensors |= {f"{i}\x1b": np.zeros(3, np.float32) for i in range(1500)}
    with pytest.raises(MappingError) as caught:
        to_params(tensors, TINY)
    lines = str(caught.value).split("\n")
    assert (len(lines), lines[-1]) == (1002, "… and 501 lines more")
    tensors = draw_checkpoint(TINY)
    tensors["module.\x1b"], tensors["\x1b"] = np.zeros(3, np.float32), np.ones(3, np.float32)
    with pytest.raises(MappingError, match=r"^\\x1b and module\.\\x1b are both \\x1b and differ"):
        to_params(tensors, TINY)


def test_a_report_for_a_person_has_its_names_escaped_and_keeps_them_as_they_are():
    report = mapping.MappingReport(TINY, renamed=(("\x1b[2J\n", "transformer.h.0.ln_1.weight"),))
    assert report.lines() == [r"renamed  \x1b[2J\n -> transformer.h.*.ln_1.weight"]
