"""A config accepts every GPT-2, names the field that is wrong, and goes through `config.json` unchanged."""

import dataclasses
import json

import pytest
from fakes import ODD, TINY

from dialogpt_jax.config import ACTIVATIONS, ALIASES, ConfigError, GPT2Config

UNUSUAL = GPT2Config(
    vocab_size=300,
    n_positions=77,
    n_embd=24,
    n_layer=5,
    n_head=6,
    n_inner=100,
    activation_function="relu",
    layer_norm_epsilon=1e-6,
    embd_pdrop=0.2,
    attn_pdrop=0.3,
    resid_pdrop=0.4,
    initializer_range=0.5,
    scale_attn_weights=False,
    scale_attn_by_inverse_layer_idx=True,
    tie_word_embeddings=False,
    eos_token_id=3,
)


@pytest.mark.parametrize(
    ("config", "width", "layers", "heads", "parameters"),
    [
        (GPT2Config.small(), 768, 12, 12, 124_439_808),
        (GPT2Config.medium(), 1024, 24, 16, 354_823_168),
        (GPT2Config.large(), 1280, 36, 20, 774_030_080),
    ],
)
def test_released_sizes(config, width, layers, heads, parameters):
    assert (config.n_embd, config.n_layer, config.n_head) == (width, layers, heads)
    assert (config.vocab_size, config.n_positions, config.eos_token_id) == (50257, 1024, 50256)
    assert (config.activation_function, config.layer_norm_epsilon) == ("gelu_new", 1e-5)
    assert (config.head_dim, config.mlp_dim, config.padded_vocab_size) == (64, 4 * width, 50304)
    assert config.num_parameters == parameters


def test_named_constructors_take_overrides():
    config = GPT2Config.medium(n_layer=1, vocab_size=128, eos_token_id=0)
    assert (config.n_layer, config.n_embd, config.padded_vocab_size) == (1, 1024, 128)


def test_a_config_is_a_static_argument():
    assert hash(GPT2Config.small()) == hash(GPT2Config())
    assert len({TINY, ODD, dataclasses.replace(TINY)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.n_layer = 4  # pyright: ignore[reportAttributeAccessIssue]


SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
RATES = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
POSITIVE = ("layer_norm_epsilon", "initializer_range")
SWITCHES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
WRONG = [
    *((name, value) for name in SIZES for value in (0, -1, 2.0, "12", True, [12])),
    *((name, None) for name in SIZES if name != "n_inner"),
    *((name, value) for name in RATES for value in (-0.1, 1.0, 1.5, float("nan"), "0.1", None, False)),
    *((name, value) for name in POSITIVE for value in (0, 0.0, -1e-5, float("nan"), float("inf"), "1e-5", None, True)),
    *((name, value) for name in POSITIVE for value in (1e-300, 1e-13, 1.5, 1e300)),
    *((name, value) for name in SWITCHES for value in (1, 0, "true", None)),
    *(("activation_function", value) for value in ("gelu_fast", "tanh", "", None)),
    *(("eos_token_id", value) for value in (-1, 50257, 1.0, "50256", None, True)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_field_is_one_line_with_its_name_and_value(name, value):
    with pytest.raises(ConfigError) as caught:
        GPT2Config(**{name: value})
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


def test_every_field_is_tried():
    assert {name for name, _ in WRONG} == {field.name for field in dataclasses.fields(GPT2Config)}


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match="n_head is 5, which does not divide n_embd 768"):
        GPT2Config(n_head=5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_known_activation_is_accepted(name):
    assert GPT2Config(activation_function=name).activation_function == name


@pytest.mark.parametrize("config", [GPT2Config.small(), GPT2Config.large(), TINY, ODD, UNUSUAL])
def test_round_trip_through_json(config):
    assert GPT2Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_unusual_differs_in_every_field():
    usual = dataclasses.asdict(GPT2Config())
    assert [name for name, value in dataclasses.asdict(UNUSUAL).items() if usual[name] == value] == []


def test_to_hf_names_the_architecture():
    fields = ODD.to_hf()
    assert fields["model_type"] == "gpt2"
    assert fields["architectures"] == ["GPT2LMHeadModel"]
    assert fields["bos_token_id"] == fields["eos_token_id"] == 7
    assert fields["n_ctx"] == fields["n_positions"] == 37


def test_from_hf_reads_microsofts_config():
    # The config.json beside DialoGPT's weights, as far as it concerns the computation.
    fields = {
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": 1024,
        "n_head": 16,
        "n_layer": 24,
        "resid_pdrop": 0.1,
        "vocab_size": 50257,
    }
    assert GPT2Config.from_hf(fields) == GPT2Config.medium()
    assert GPT2Config.from_hf({**fields, "n_ctx": 512}).n_positions == 512
    assert GPT2Config.from_hf({**fields, "n_ctx": 512, "n_positions": 256}).n_positions == 256


ALIASED = {
    "num_hidden_layers": TINY.n_layer,
    "hidden_size": TINY.n_embd,
    "num_attention_heads": TINY.n_head,
    "max_position_embeddings": TINY.n_positions,
}


def test_from_hf_reads_the_names_that_other_models_have():
    sizes = ("n_layer", "n_embd", "n_head", "n_positions", "n_ctx")
    fields = {name: value for name, value in TINY.to_hf().items() if name not in sizes}
    assert GPT2Config.from_hf({**fields, **ALIASED}) == TINY
    assert GPT2Config.from_hf({**TINY.to_hf(), **ALIASED}) == TINY
    assert GPT2Config.from_hf({**TINY.to_hf(), **dict.fromkeys(ALIASED)}) == TINY
    assert GPT2Config.from_hf({**fields, **ALIASED, "n_ctx": 7}) == TINY


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_two_names_of_one_size_must_agree(alias, name):
    fields = {**TINY.to_hf(), alias: 96}
    with pytest.raises(ConfigError, match=f"{alias} is 96 and {name} is {fields[name]}, and they are two names"):
        GPT2Config.from_hf(fields)


@pytest.mark.parametrize(
    ("eos", "read"), [({}, 60), ({"eos_token_id": None}, 60), ({"eos_token_id": [4, 5]}, 4), ({"eos_token_id": []}, 60)]
)
def test_from_hf_finds_the_end_token(eos, read):
    fields = {name: value for name, value in TINY.to_hf().items() if name != "eos_token_id"}
    assert GPT2Config.from_hf({**fields, **eos}).eos_token_id == read


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_head": 7}, "n_head is 7"),
        ({"activation_function": "swish"}, "activation_function is 'swish'"),
        ({"vocab_size": "many", "eos_token_id": None}, "vocab_size is 'many'"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"vocab_size": [1]}, "vocab_size is \\[1\\]"),
        ({"n_ctx": "1024"}, "n_positions is '1024'"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon"),
        ([1, 2], "expected a JSON object, got list"),
        (None, "expected a JSON object, got NoneType"),
        ("gpt2", "expected a JSON object, got str"),
    ],
)
def test_from_hf_refuses_in_one_line(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        GPT2Config.from_hf(fields)
    assert "\n" not in str(caught.value)
