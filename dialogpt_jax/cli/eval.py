"""`dialogpt eval`: replies of files or of a model in; the paper's measures out, as a table or JSON."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
