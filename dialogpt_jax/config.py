"""What a GPT-2 is, as a value: sizes and constants in, and the `config.json` of a model directory in and out.

A `GPT2Config` is frozen and hashable, so it goes through `jax.jit` as a static argument. Its fields bear the names of
Hugging Face's `config.json`, because those are the names a reader meets in every model.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from dialogpt_jax.arguments import MOST, as_plain, shown

# Rows of the token embedding are padded to a multiple of this: 50,257 = 29 · 1733 divides by no mesh and no vector
# register; 50,304 = 393 · 128 does. The pad never shows outside the model.
VOCAB_MULTIPLE = 128
LEAST_POSITIVE = 1e-12  # of what is added to a variance or multiplies a draw; far below lies what float32 takes for 0

# The names that other models' configs have for the same sizes; transformers reads them in a GPT-2's, too.
ALIASES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
CONFIG_FILE = "config.json"  # in every model directory
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu")


class ConfigError(ValueError):
    """A configuration that no GPT-2 of this package can have; the message names the field and the value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The sizes and constants of a GPT-2.

    Attributes:
      vocab_size: number of token ids.
      n_positions: the longest text in tokens; position embeddings are absolute (1024 in every DialoGPT).
      n_embd: model width D.
      n_layer: number of blocks L.
      n_head: number of attention heads H; divides `n_embd`.
      n_inner: width F of the MLP; `None` means 4·D.
      activation_function: one of `ACTIVATIONS`; GPT-2 uses the tanh form of GELU, `gelu_new`.
      layer_norm_epsilon: 1e-5 in GPT-2.
      embd_pdrop, attn_pdrop, resid_pdrop: dropout rates, used only where a `dropout_key` is given.
      initializer_range: standard deviation of fresh weights.
      scale_attn_weights, scale_attn_by_inverse_layer_idx: scale attention scores by K^-1/2, and by 1/(layer + 1).
      tie_word_embeddings: the head is the token embedding; if false, the parameters hold a `lm_head`.
      eos_token_id: the token that ends every turn.

    Raises:
      ConfigError: a size is no positive int32, `n_head` does not divide `n_embd`, an unknown activation, an EOS outside the
        vocabulary.

    Source: Radford et al. 2019; field names of transformers' `configuration_gpt2.py`.

    Example:
      >>> dg.GPT2Config.medium().num_parameters
      354823168
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    eos_token_id: int = 50256

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_plain(getattr(self, field.name)))  # NumPy's numbers, as Python's
        sizes = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"]
        sizes += [] if self.n_inner is None else ["n_inner"]
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise ConfigError(f"config: {name} is {shown(value)}; it must be a whole number from 1 to {MOST}")
        if self.n_embd % self.n_head:
            raise ConfigError(f"config: n_head is {self.n_head}, which does not divide n_embd {self.n_embd}")
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"config: activation_function is {shown(self.activation_function)}; known: {', '.join(ACTIVATIONS)}"
            )
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value < 1.0:
                raise ConfigError(f"config: {name} is {shown(value)}; it must be at least 0 and less than 1")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or not LEAST_POSITIVE <= value <= 1:
                raise ConfigError(f"config: {name} is {shown(value)}; it must be a number from {LEAST_POSITIVE} to 1")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"config: {name} is {shown(getattr(self, name))}; it must be true or false")
        eos = self.eos_token_id
        if not isinstance(eos, int) or isinstance(eos, bool) or not 0 <= eos < self.vocab_size:
            raise ConfigError(
                f"config: eos_token_id is {shown(eos)}; it must be an id of the vocabulary, 0 to {self.vocab_size - 1}"
            )

    @classmethod
    def small(cls, **overrides: Any) -> "GPT2Config":
        """117M: 124,439,808 parameters, the head tied (DialoGPT-small)."""
        return cls(**{"n_embd": 768, "n_layer": 12, "n_head": 12, **overrides})

    @classmethod
    def medium(cls, **overrides: Any) -> "GPT2Config":
        """345M: 354,823,168 parameters (DialoGPT-medium)."""
        return cls(**{"n_embd": 1024, "n_layer": 24, "n_head": 16, **overrides})

    @classmethod
    def large(cls, **overrides: Any) -> "GPT2Config":
        """762M: 774,030,080 parameters (DialoGPT-large)."""
        return cls(**{"n_embd": 1280, "n_layer": 36, "n_head": 20, **overrides})

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_dim(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Parameters in the weight file: a tied head counts once, the pad of the vocabulary not at all."""
        d, f = self.n_embd, self.mlp_dim
        block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d)
        embeddings = (self.vocab_size + self.n_positions) * d
        head = 0 if self.tie_word_embeddings else self.vocab_size * d
        return embeddings + head + self.n_layer * block + 2 * d

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> "GPT2Config":
        """The config in a Hugging Face `config.json`, read as a mapping.

        The four names of `ALIASES` are read, as transformers reads them. Fields that say nothing about the computation
        are passed over.

        Raises:
          ConfigError: not a GPT-2, a feature that this model lacks (cross attention), a field out of range, or two names
            for one size that say two numbers.
        """
        if not isinstance(fields, Mapping):
            raise ConfigError(f"config: expected a JSON object, got {type(fields).__name__}")
        kind = fields.get("model_type", "gpt2")
        if kind != "gpt2":
            raise ConfigError(f"config: model_type is {shown(kind)}; this package reads 'gpt2'")
        if fields.get("add_cross_attention"):
            raise ConfigError("config: add_cross_attention is true; DialoGPT is a decoder without it")
        known = {field.name for field in dataclasses.fields(cls)}
        chosen = {name: value for name, value in fields.items() if name in known}
        for alias, name in ALIASES.items():
            if fields.get(alias) is not None and fields[alias] != chosen.setdefault(name, fields[alias]):
                raise ConfigError(
                    f"config: {alias} is {shown(fields[alias])} and {name} is {shown(chosen[name])}, and they are two "
                    "names of one size; leave out the wrong one"
                )
        if "n_positions" not in chosen and "n_ctx" in fields:  # the name in Microsoft's own configs
            chosen["n_positions"] = fields["n_ctx"]
        if isinstance(chosen.get("eos_token_id"), list):  # transformers allows several; GPT-2's have one
            chosen["eos_token_id"] = chosen["eos_token_id"][0] if chosen["eos_token_id"] else None
        vocab = chosen.get("vocab_size", cls.vocab_size)
        if chosen.get("eos_token_id") is None and isinstance(
            vocab, int
        ):  # else the constructor complains of vocab_size
            chosen["eos_token_id"] = vocab - 1  # the last, as in GPT-2's vocabulary
        return cls(**chosen)

    def to_hf(self) -> dict[str, Any]:
        """The fields of a `config.json` that transformers and CTranslate2 read as the same model."""
        fields: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
        fields |= dataclasses.asdict(self)
        fields["bos_token_id"] = self.eos_token_id  # GPT-2 has one special token
        fields["n_ctx"] = self.n_positions  # older readers look for this name
        return fields


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
