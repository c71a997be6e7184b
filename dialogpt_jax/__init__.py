"""DialoGPT in JAX and Flax: a table of contents, `__all__` below.

>>> import dialogpt_jax as dg
>>> bot = dg.load()
>>> bot.reply("Does money buy happiness?")
'...'

The examples of this reference go on from there, each from those before it, with `functools`, `jax`, `jax.numpy as jnp`,
`numpy as np` and `optax` imported; `'...'` stands for any text. What is given wrongly is a `ValueError` or a `TypeError`;
those that have a name of their own stand at the end.
"""

# ruff: noqa: F405  (the names of `contents`)
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogpt_jax.contents import *  # noqa: F403

if find_spec("dialogpt_jax.convert") is None:
    # In a checkout it is a link, which some systems and archives drop.
    raise ImportError(
        f"{__path__[0]}/convert is not the link to ../convert that it should be: copy that folder to its place, "
        "or install with `pip install .`, which needs no link"
    )

__version__ = "0.1.0"  # its only place: pyproject.toml reads it here

__all__ = [
    # A model one can talk with
    "load",
    "Bot",
    "Candidate",
    "Chat",
    "self_chat",
    "Conversation",
    "Rank",
    "Ranking",
    "Safety",
    # How a reply is drawn
    "Sampling",
    "GREEDY",
    "PAPER",
    "anti_lm",
    # The model as pure functions of its parameters
    "GPT2Config",
    "init_params",
    "forward",
    "generate",
    "Generated",
    "generate_candidates",
    "beam_search",
    "Beams",
    "contrastive_search",
    "Draft",
    "score",
    "Scores",
    # What people would make of a reply
    "Ranker",
    "SenseHead",
    "load_ranker",
    "ensemble_score",
    # Text, and model directories
    "Tokenizer",
    "load_params",
    "write_directory",
    "quantize",
    "dequantize",
    # Data for training
    "Dialogue",
    "make_examples",
    "Example",
    "open_shards",
    "Batch",
    "Pair",
    "make_pairs",
    # Training: a run, and the pure functions in it
    "fit",
    "Fitted",
    "TrainOptions",
    "Teacher",
    "PAIRWISE",
    "loss",
    "init_state",
    "TrainState",
    "train_step",
    # Errors: each is a ValueError, but for CheckpointError, an OSError
    "ChatError",
    "CheckpointError",
    "CheckpointMismatch",
    "ConfigError",
    "DataError",
    "DialogueError",
    "HubError",
    "MappingError",
    "ModelDirectoryError",
    "NonFiniteLogits",
    "ReadError",
    "TokenizerError",
    "TrainingError",
    # Warnings: each is a UserWarning
    "DamagedCheckpoint",
    "ExportWarning",
    "NonFiniteWeights",
    "TruncationWarning",
    "UntiedHead",
    "__version__",
]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # or a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        """The names above, when the first of them is used: so `dialogpt --help` need not wait for jax."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from dialogpt_jax import contents

        globals().update({name: getattr(contents, name) for name in __all__ if name != "__version__"})
        return globals()[name]
