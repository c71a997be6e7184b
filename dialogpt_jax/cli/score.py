"""`dialogpt score`: dialogues with replies in; how probable a model finds each reply, a row each, out."""

import sys
from typing import Annotated

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import ModelFlags, load_bot
from dialogpt_jax.cli.flags import HYPHEN, WHOLE, UsageError, make_app
from dialogpt_jax.errors import counted
from dialogpt_jax.replies.settings import DEFAULT_MAX_NEW_TOKENS, checked_length

EXAMPLES = """\
A line of the file is a dialogue whose last turn is the reply, in a form that `dialogpt data check --help` shows; or has \
the replies apart; or is TSV, a turn a column, the last the reply:

  {"turns": ["Hi!"], "reply": "Hello."}
  {"turns": ["Hi!"], "replies": ["Hello.", "Bye."]}
  Hi! ⇥ Hello. ⇥ Any plans? ⇥ No.     also Hi! EOS Hello. EOS Any plans? ⇥ No.

Out comes a row for each reply, in their order, as TSV where TSV came in, else as JSON lines:

  logprob       log P(reply | context), in nats; the end of the turn counts
  mean          of a token
  perplexity    exp(-mean)
  pmi           log P(reply | context) - log P(reply): what the context adds
  tokens        of the reply, its end included

So pandas reads them: `read_json("scores.jsonl", lines=True)`, `read_csv("scores.tsv", sep="\\t", keep_default_na=False)`.

Examples:
  dialogpt score talk.jsonl > scores.jsonl
  dialogpt score talk.tsv --out scores.tsv      run again, it goes on
  printf 'Hi!\\tHello.\\n' | dialogpt score -
  dialogpt score --tokens talk.jsonl            each token's too
  dialogpt reply --data talk.jsonl | dialogpt score --model other_model -
"""
app = make_app("score", "dialogpt score [OPTIONS] FILE", help_epilogue=EXAMPLES)


@app.default
def run(
    file: Annotated[str, Parameter(name="FILE", help="dialogues with replies; `-` is standard input")],
    /,
    *,
    out: Annotated[
        str | None,
        Parameter(
            metavar="FILE", help="the rows into a file, as they come; goes on where it stopped; one process at a time"
        ),
    ] = None,
    tokens: Annotated[bool, Parameter(help="JSON lines with each token's text and log-probability too")] = False,
    max_new_tokens: Annotated[
        int, WHOLE, Parameter(metavar="N", help="the context is what it would be for a reply of N tokens")
    ] = DEFAULT_MAX_NEW_TOKENS,
    model: ModelFlags = ModelFlags(),  # noqa: B008  (frozen)
) -> int:
    if HYPHEN in (out, model.model, model.revision):
        raise UsageError("`-` stands for dialogues from standard input, and for nothing else")
    checked_length(max_new_tokens)
    from dialogpt_jax.cli.progress import show_progress
    from dialogpt_jax.data.lines_to_score import read_lines_to_score
    from dialogpt_jax.evaluation.scores import bits_per_byte, score_lines

    if file == HYPHEN:
        lines, table = read_lines_to_score("standard input", sys.stdin.read().encode("utf-8", "surrogateescape"))
    else:
        lines, table = read_lines_to_score(file)
    bot = load_bot(model)
    with show_progress("replies", "tokens") as progress:
        rows, kept = score_lines(
            bot,
            lines,
            max_new_tokens=max_new_tokens,
            out=out,
            table=table and not tokens,
            per_token=tokens,
            progress=lambda new, left: progress(len(new), left, sum(row.tokens for row in new)),
        )
    if out is None:
        show = streams.show if kept.table else streams.print_json
        for text in [kept.head(), *map(kept.line, rows)]:
            if text:
                show(text.rstrip("\n"))
    count = sum(row.tokens for row in rows)
    mean, pmi = sum(row.logprob for row in rows) / count, sum(row.pmi for row in rows) / len(rows)
    bits = bits_per_byte(rows, [reply for _, reply in kept.replies])
    streams.tell(
        f"{counted(len(rows), 'replies')}{f' in {out}' if out is not None else ''}: log P {mean:.3f} a token, "
        f"{bits:.3f} bits per byte, PMI {pmi:.2f} on average"
    )
    return 0
