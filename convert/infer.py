"""A weight file without a config in; the config that its shapes tell, out."""

import warnings

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.names import (
    EMBEDDING,
    HEAD,
    MappingError,
    Tensors,
    WeightsWarning,
    count_layers,
    normalise,
    same_bits,
)

GPT2_HEAD_DIM = 64  # of every released GPT-2 and DialoGPT; the number of heads is not in the shapes
RELEASED = {(12, 768): "small", (24, 1024): "medium", (36, 1280): "large", (48, 1600): "GPT-2 XL"}  # layers and width


class GuessedHeads(WeightsWarning):
    """The number of attention heads is a guess: the shapes do not show it, and they are no released model's."""


def infer_config(tensors: Tensors, *, n_head: int | None = None) -> GPT2Config:
    """The config of a bare weight file, from its shapes.

    The number of heads is not in the shapes: a head has 64 dimensions in every released GPT-2 and DialoGPT, which is
    taken unless `n_head` is given. EOS is the last id, as in GPT-2's vocabulary; rates and constants are GPT-2's.

    Warns:
      GuessedHeads: `n_head` is not given, and layers and width are no released model's.

    Raises:
      MappingError: not a GPT-2, or a width that 64 does not divide and no `n_head`.
      ConfigError: an `n_head` that does not divide the width.
    """
    found = normalise(tensors).tensors
    shapes = {name: array.shape for name, array in found.items()}
    needed = (EMBEDDING, "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight")
    lacking = [name for name in needed if len(shapes.get(name, ())) != 2]
    if lacking:
        raise MappingError(f"not a GPT-2: no matrix {', '.join(lacking)} among {len(shapes)} tensors")
    (vocab, width), (positions, _), (_, inner) = (shapes[name] for name in needed)
    layers = count_layers(found)
    if n_head is None and width % GPT2_HEAD_DIM:
        raise MappingError(
            f"the number of heads is not in the shapes, and {GPT2_HEAD_DIM}, a GPT-2 head's size, does not divide the "
            f"width {width}: give it (--heads N), or a config.json with n_head"
        )
    if n_head is None and (layers, width) not in RELEASED:
        warnings.warn(
            f"the number of heads is not in the shapes; taken as {width // GPT2_HEAD_DIM}, of {GPT2_HEAD_DIM} dimensions "
            f"as in GPT-2. {layers} layers of width {width} are no released model's: if it has another number, its replies "
            "are noise; give it (--heads N), or a config.json with n_head",
            GuessedHeads,
            stacklevel=2,
        )
    return GPT2Config(
        vocab_size=vocab,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=width // GPT2_HEAD_DIM if n_head is None else n_head,
        n_inner=None if inner == 4 * width else inner,
        tie_word_embeddings=HEAD not in found or same_bits(found[HEAD], found[EMBEDDING]),
        eos_token_id=vocab - 1,
    )
