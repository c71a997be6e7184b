"""`dialogpt chat`: flags in, a conversation at the terminal out."""

from typing import Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.cli.common import (
    BeamFlags,
    Block,
    ModelFlags,
    ReplyFlags,
    SamplingFlags,
    beams_of,
    load_bot,
    sampling_of,
    seed_of,
)
from dialogpt_jax.cli.compiling import tell_of_compiling
    draft: DraftFlags = DraftFlags(),  # noqa: B008
