"""DialoGPT in JAX and Flax: a table of contents.

import dialogpt_jax as dg
bot = dg.load()
bot.reply("Does money buy happiness?")
"""

# A model one can talk with
from dialogpt_jax.chat.bot import Bot as Bot
from dialogpt_jax.chat.bot import Candidate as Candidate
from dialogpt_jax.chat.bot import load as load
from dialogpt_jax.chat.session import Chat as Chat

# The model as pure functions of parameters
from dialogpt_jax.config import GPT2Config as GPT2Config

# Data for training
from dialogpt_jax.data.batches import Batch as Batch
from dialogpt_jax.data.examples import Example as Example
from dialogpt_jax.data.examples import make_examples as make_examples
from dialogpt_jax.data.formats import Dialogue as Dialogue
from dialogpt_jax.data.shards import open_shards as open_shards

# Decoding
from dialogpt_jax.decoding.generate import Generated as Generated
from dialogpt_jax.decoding.generate import generate as generate
from dialogpt_jax.decoding.generate import generate_candidates as generate_candidates
from dialogpt_jax.decoding.logits import GREEDY as GREEDY
from dialogpt_jax.decoding.logits import PAPER as PAPER
from dialogpt_jax.decoding.logits import Sampling as Sampling
from dialogpt_jax.decoding.score import Scores as Scores
from dialogpt_jax.decoding.score import score as score
from dialogpt_jax.model import forward as forward
from dialogpt_jax.model import init_params as init_params

# Training as pure functions, and the loop around them
from dialogpt_jax.run.fit import Fitted as Fitted
from dialogpt_jax.run.fit import fit as fit
from dialogpt_jax.run.options import TrainOptions as TrainOptions

# Text
from dialogpt_jax.text.tokenizer import Tokenizer as Tokenizer
from dialogpt_jax.training.loss import loss as loss
from dialogpt_jax.training.step import TrainState as TrainState
from dialogpt_jax.training.step import init_state as init_state
from dialogpt_jax.training.step import train_step as train_step

# Model directories
from dialogpt_jax.weights.directory import load_params as load_params
from dialogpt_jax.weights.directory import write_directory as write_directory
