"""What other programs make of a model directory: the tokenizer's settings that they read, the options that they ignore."""

import warnings
from typing import Any

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.names import WeightsWarning
from dialogpt_jax.text.dialogue import UNSAID
from dialogpt_jax.text.tokenizer import Tokenizer

# Jinja, as transformers and llama.cpp run it: turns joined and ended by EOS, whoever said them. A reply begins after the
# last EOS, so that `add_generation_prompt` changes nothing. Content may be a text, or a list of parts that have one.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] in [" + ", ".join(f"'{role}'" for role in UNSAID) + "] -%}"
    "{{- raise_exception('a ' + message['role'] + ' message is no turn of a dialogue; leave it out, or put its text into a "
    "user message') -}}"
    "{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{{- eos_token -}}"
    "{%- endfor -%}"
)


class ExportWarning(WeightsWarning):
    """A program that reads this format would compute another model from it."""


def tokenizer_config(config: GPT2Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of `tokenizer_config.json`, with which transformers and CTranslate2 read the tokenizer as it is."""
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # runs tokenizer.json as it stands
        "model_max_length": config.n_positions,
        "clean_up_tokenization_spaces": False,
        # Without this the class makes token types, whose zeros GPT-2 would add as embeddings of the token `!`.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if tokenizer.end_of_text is not None:
        fields |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), tokenizer.end_of_text)
        fields["chat_template"] = CHAT_TEMPLATE
    return fields


def warn_of_ignored(config: GPT2Config) -> None:
    """Names what CTranslate2 ignores in this model (its `GPT2Loader` reads layers, heads and the activation alone).

    Warns:
      ExportWarning: it would compute another model.
    """
    usual = GPT2Config()
    names = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "layer_norm_epsilon")
    ignored = [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(usual, name)]
    if ignored:
        warnings.warn(
            f"CTranslate2 ignores {', '.join(ignored)} of this model and computes another one; transformers and this "
            "package heed it",
            ExportWarning,
            stacklevel=3,
        )
