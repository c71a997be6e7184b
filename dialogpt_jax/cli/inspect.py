"""`dialogpt inspect`: a weight file or model directory in, what it is out, judged by its contents and not by its name."""

import json
from typing import Annotated

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.flags import make_app
from dialogpt_jax.convert.doctor import describe_findings
from dialogpt_jax.weights.source import inspect_source

EXAMPLES = """\
Examples:
  dialogpt inspect medium_ft.pkl
  dialogpt inspect microsoft/DialoGPT-small --json
"""
app = make_app("inspect", "dialogpt inspect [OPTIONS] FILE", help_epilogue=EXAMPLES)


@app.default
def run(
    path: Annotated[str, Parameter(name="FILE", help="a weight file, a model directory, or a name on the Hub")],
    /,
    *,
    revision: Annotated[str | None, Parameter(metavar="NAME", help="a branch, tag or commit on the Hub")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="one JSON object instead of lines")] = False,
) -> int:
    findings = inspect_source(path, revision=revision)
    if as_json:
        streams.print_json(json.dumps(findings.to_json(), indent=2))
    else:
        streams.show(describe_findings(findings))
    return 0
