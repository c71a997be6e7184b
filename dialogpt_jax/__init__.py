"""DialoGPT in JAX and Flax: a table of contents, `__all__` below.

>>> import dialogpt_jax as dg
>>> bot = dg.load()
>>> bot.reply("Does money buy happiness?")
'...'

The examples of this reference go on from there, each from those before it, with `functools`, `jax`, `jax.numpy as jnp`,
`numpy as np` and `optax` imported; `'...'` stands for any text. What is given wrongly is a `ValueError` or a `TypeError`;
those that have a name of their own stand at the end.
"""

try:
    from dialogpt_jax.convert.mapping import NonFiniteWeights, UntiedHead
except (
    ModuleNotFoundError
) as error:  # in a checkout `dialogpt_jax/convert` is a link, which some systems and archives drop
    if error.name != "dialogpt_jax.convert":
        raise
    raise ImportError(
        f"{__path__[0]}/convert is not the link to ../convert that it should be: copy that folder to its place, "
        "or install with `pip install .`, which needs no link"
    ) from None

from dialogpt_jax.chat.bot import Bot, load
from dialogpt_jax.chat.candidates import Candidate
from dialogpt_jax.chat.session import Chat, ChatError
from dialogpt_jax.config import ConfigError, GPT2Config
from dialogpt_jax.convert.names import MappingError
from dialogpt_jax.convert.weight_file import ReadError
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.data.examples import Example, make_examples
from dialogpt_jax.data.formats import DataError, Dialogue
from dialogpt_jax.data.shards import open_shards
from dialogpt_jax.decoding.generate import Generated, generate, generate_candidates
from dialogpt_jax.decoding.logits import GREEDY, PAPER, Sampling
from dialogpt_jax.decoding.score import Scores, score
from dialogpt_jax.model import forward, init_params
from dialogpt_jax.run.checkpoints import CheckpointError, CheckpointMismatch, DamagedCheckpoint
from dialogpt_jax.run.fit import Fitted, TrainingError, fit
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.text.dialogue import DialogueError, TruncationWarning
from dialogpt_jax.text.tokenizer import Tokenizer, TokenizerError
from dialogpt_jax.training.loss import loss
from dialogpt_jax.training.step import TrainState, init_state, train_step
from dialogpt_jax.weights.directory import ModelDirectoryError, load_params, write_directory
from dialogpt_jax.weights.hub import HubError
from dialogpt_jax.weights.other_programs import ExportWarning

__version__ = "0.1.0"  # its only place: pyproject.toml reads it here

__all__ = [
    # A model one can talk with
    "load",
    "Bot",
    "Candidate",
    "Chat",
    # How a reply is drawn
    "Sampling",
    "GREEDY",
    "PAPER",
    # The model as pure functions of its parameters
    "GPT2Config",
    "init_params",
    "forward",
    "generate",
    "Generated",
    "generate_candidates",
    "score",
    "Scores",
    # Text, and model directories
    "Tokenizer",
    "load_params",
    "write_directory",
    # Data for training
    "Dialogue",
    "make_examples",
    "Example",
    "open_shards",
    "Batch",
    # Training: a run, and the pure functions in it
    "fit",
    "Fitted",
    "TrainOptions",
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
