"""A model and its tokenizer as one value, which everything that replies or measures works on.

What flows in: parameters, sizes and a tokenizer that fit each other. What flows out: the ids of a dialogue.
"""

import dataclasses

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.processor_arrays import texts_as_ids
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.speculative import Draft, check_draft, describe_draft
from dialogpt_jax.decoding.stops import Stops, stops_of
from dialogpt_jax.int8 import dtype_name
from dialogpt_jax.model import Params, check_params
from dialogpt_jax.replies.settings import DEFAULT_MAX_NEW_TOKENS, checked_length
from dialogpt_jax.text.dialogue import DialogueError, Turns, encode, texts_of
from dialogpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """Parameters, config and tokenizer.

    Attributes:
      params: the parameters; the computation has their dtype.
      config: the sizes.
      tokenizer: text to ids.
      draft: how tokens are drafted for replies, if they are.

    Raises:
      TypeError: one of them is something else.
      ValueError: they do not fit each other.
    """

    params: Params
    config: GPT2Config
    tokenizer: Tokenizer
    draft: Draft | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_params(self.params, self.config)
        if not isinstance(self.tokenizer, Tokenizer):
            raise TypeError(f"tokenizer is {shown(self.tokenizer)}; give a Tokenizer, such as `Tokenizer.load(folder)`")
        if self.tokenizer.vocab_size > self.config.vocab_size:
            ids, rows = self.tokenizer.vocab_size, self.config.vocab_size
            raise ValueError(f"the tokenizer has {ids} ids, the model a vocabulary of {rows}; give the model's own")
        if self.draft is not None:
            check_draft(self.draft, self.config)

    def __repr__(self) -> str:
        config = self.config
        drafts = "" if self.draft is None else f", {describe_draft(self.draft)}"
        return (
            f"{type(self).__name__}({config.num_parameters:,} parameters in {dtype_name(self.params)}: "
            f"{config.n_layer} layers of width {config.n_embd}, {config.n_head} heads, {config.n_positions} positions, "
            f"{self.tokenizer.vocab_size:,} token ids{drafts})"
        )

    def stops(self, sampling: Sampling) -> Stops | None:
        """The texts that end a reply, as the decoding takes them."""
        return stops_of(self.tokenizer, sampling.stop_strings, self.config.padded_vocab_size)

    def with_ids(self, sampling: Sampling) -> Sampling:
        """The sampling with token ids for the texts of its lists, as the decoding takes it."""
        return texts_as_ids(sampling, self.tokenizer)

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


def same_vocabulary(one: LanguageModel, other: LanguageModel) -> bool:
    """Whether each id means the same to both."""
    ours, theirs = one.tokenizer, other.tokenizer
    if (ours.vocab_size, one.config.eos_token_id) != (theirs.vocab_size, other.config.eos_token_id):
        return False
    return ours is theirs or all(ours.token(i) == theirs.token(i) for i in range(ours.vocab_size))


def draft_by(model: LanguageModel, small: LanguageModel, tokens: int) -> Draft:
    """Drafts for a model by a smaller one, which must read the same ids.

    Raises:
      TypeError: the smaller one is no model.
      ValueError: its vocabulary is another, or it has fewer positions.
    """
    if not isinstance(small, LanguageModel):
        raise TypeError(f"draft is {shown(small)}; give 'lookup', a model's directory or name, or a LanguageModel")
    if not same_vocabulary(model, small):
        difference = _difference(small, model)
        raise ValueError(
            f"the draft model has another vocabulary ({difference}); give one that was made with the model's"
        )
    return Draft(small.params, small.config, tokens=tokens)


def _difference(one: LanguageModel, other: LanguageModel) -> str:
    """Where two vocabularies differ, for a person."""
    ours, theirs = one.tokenizer, other.tokenizer
    if ours.vocab_size != theirs.vocab_size:
        return f"{ours.vocab_size:,} tokens, the model {theirs.vocab_size:,}"
    if one.config.eos_token_id != other.config.eos_token_id:
        return f"EOS is {one.config.eos_token_id}, the model's {other.config.eos_token_id}"
    first = next(i for i in range(ours.vocab_size) if ours.token(i) != theirs.token(i))
    return f"id {first} is {ours.token(first)!r}, the model's {theirs.token(first)!r}"


def refuse_draft(model: LanguageModel, way: str) -> None:
    """Whether a model replies without drafts, as a search or a ranking does.

    Raises:
      ValueError: it has a drafter.
    """
    if model.draft is not None:
        raise ValueError(f"{way} goes without drafts, and this bot has them; load it without draft, or leave {way} out")
