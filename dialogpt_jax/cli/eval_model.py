"""The half of `dialogpt eval` that asks a model: its flags in, replies and a table's numbers out."""

import dataclasses
import os
import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
    drafts = drafts_of(draft, {"--beams": searched, "--rank": ranked, "--penalty-alpha": penalty_alpha})
