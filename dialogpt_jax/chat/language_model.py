"""A model and its tokenizer as one value, which everything that replies or measures works on.

What flows in: parameters, sizes and a tokenizer that fit each other. What flows out: the ids of a dialogue.
"""

import dataclasses
from collections.abc import Mapping

from dialogpt_jax.arguments import shown
from dialogpt_jax.chat.settings import DEFAULT_MAX_NEW_TOKENS, checked_length
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import Params
from dialogpt_jax.text.dialogue import DialogueError, Turns, encode, texts_of
from dialogpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """Parameters, config and tokenizer.

    Attributes:
      params: the parameters; the computation has their dtype.
      config: the sizes.
      tokenizer: text to ids.

    Raises:
      TypeError: one of the three is something else.
      ValueError: they do not fit each other.
    """

    params: Params
    config: GPT2Config
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.params, Mapping) or not isinstance(self.params.get("wte"), Mapping):
            raise TypeError(f"{name}: params is {shown(self.params)}; give the parameters of `load_params` or `fit`")
        if not isinstance(self.config, GPT2Config):
            raise TypeError(f"{name}: config is {shown(self.config)}; give the GPT2Config of the parameters")
        if not isinstance(self.tokenizer, Tokenizer):
            raise TypeError(
                f"{name}: tokenizer is {shown(self.tokenizer)}; give a Tokenizer, such as `Tokenizer.load(folder)`"
            )
        _check_sizes(self.params, self.config)
        if self.tokenizer.vocab_size > self.config.vocab_size:
            ids, rows = self.tokenizer.vocab_size, self.config.vocab_size
            raise ValueError(f"the tokenizer has {ids} ids, the model a vocabulary of {rows}; give the model's own")

    def __repr__(self) -> str:
        config = self.config
        return (
            f"{type(self).__name__}({config.num_parameters:,} parameters in {self.params['wte']['embedding'].dtype}: "
            f"{config.n_layer} layers of width {config.n_embd}, {config.n_head} heads, {config.n_positions} positions, "
            f"{self.tokenizer.vocab_size:,} token ids)"
        )

    def encode(self, turns: Turns, *, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS) -> list[int]:
        """The context of a reply to `turns`: their ids, each turn ended by EOS, the oldest left out if they do not fit.

        Args:
          turns: a text, a list of texts or chat messages.
          max_new_tokens: the reply for which room is left.
        """
        texts = texts_of(turns)
        if not texts:
            raise DialogueError("the dialogue has no turn; give at least one text")
        return encode(
            self.tokenizer,
            texts,
            eos=self.config.eos_token_id,
            n_positions=self.config.n_positions,
            max_new_tokens=checked_length(max_new_tokens),
        )


def _check_sizes(params: Params, config: GPT2Config) -> None:
    """Passes if parameters have the sizes of a config, as far as a few of them tell."""
    layers = sum(name.startswith("h_") for name in params)
    vocab, width = params["wte"]["embedding"].shape
    heads = params["h_0"]["attn"]["c_attn"]["kernel"].shape[1] if layers else config.n_head
    for name, ours, theirs in (
        ("n_layer", layers, config.n_layer),
        ("vocab_size, padded,", vocab, config.padded_vocab_size),
        ("n_positions", params["wpe"]["embedding"].shape[0], config.n_positions),
        ("n_embd", width, config.n_embd),
        ("n_head", heads, config.n_head),
    ):
        if ours != theirs:
            raise ValueError(
                f"{name} is {theirs} in the config and {ours} in the parameters; give the two that belong together"
            )
    if ("lm_head" in params) == config.tie_word_embeddings:
        has = "have" if "lm_head" in params else "have no"
        raise ValueError(
            f"tie_word_embeddings is {config.tie_word_embeddings}; the parameters {has} a lm_head of their own"
        )
