"""`dialogpt convert`: a model in any form in; a model directory, Microsoft's own file or GGUF out."""

import warnings
from typing import Annotated

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.flags import WHOLE, default_of, make_app
from dialogpt_jax.convert.names import WeightsWarning
from dialogpt_jax.weights.conversion import DTypeOrKeep, Form, convert

EXAMPLES = """\
SRC may be a PyTorch file (.bin, .pt, .pkl, either format), safetensors, Flax's msgpack, the index of a sharded one, a \
model directory, or a name on the Hub. What is renamed, dropped or transposed is printed. Nothing is half-written.

Examples:
  dialogpt convert microsoft/DialoGPT-small DIR
  dialogpt convert medium_ft.pkl DIR --tokenizer microsoft/DialoGPT-medium
  dialogpt convert DIR model.pkl --to pkl
  dialogpt convert DIR model.gguf --to gguf
"""
TO: Form = default_of(convert, "to")
app = make_app("convert", "dialogpt convert [OPTIONS] SRC DST", help_epilogue=EXAMPLES)


@app.default
def run(
    source: Annotated[str, Parameter(name="SRC", help="a weight file, a model directory, or a name on the Hub")],
    target: Annotated[str, Parameter(name="DST", help="the directory, or with another --to the file, to write")],
    /,
    *,
    to: Annotated[Form, Parameter(metavar="FORM", help="what to write")] = TO,
    dtype: Annotated[
        DTypeOrKeep | None, Parameter(metavar="NAME", help="of what is written; keep, or float16 for a .pkl")
    ] = None,
    tokenizer: Annotated[str | None, Parameter(metavar="MODEL", help="where it is, if SRC has none")] = None,
    config: Annotated[
        str | None, Parameter(metavar="FILE", help="a config.json, if SRC has none and the shapes do not do")
    ] = None,
    heads: Annotated[
        int | None, WHOLE, Parameter(metavar="N", help="attention heads, if SRC has no config: no shape tells")
    ] = None,
    revision: Annotated[str | None, Parameter(metavar="NAME", help="a branch, tag or commit on the Hub")] = None,
    force: Annotated[bool, Parameter(help="replace the model, or the file, that is at DST")] = False,
) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("always", WeightsWarning)
        warnings.showwarning = lambda message, *_, **__: streams.tell(f"warning: {message}")
        lines = convert(
            source,
            target,
            to=to,
            dtype=dtype,
            config=config,
            heads=heads,
            tokenizer=tokenizer,
            revision=revision,
            force=force,
        )
    for line in lines:
        streams.show(line)
    return 0
