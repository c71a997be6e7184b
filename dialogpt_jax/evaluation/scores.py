"""Dialogues with replies flow in; a row of figures for each reply comes out, and a file of them that can be gone on with.

    {"turns": ["Hi!"], "reply": "Hello.", "logprob": …, "mean": …, "perplexity": …, "pmi": …, "tokens": 3, "index": 0, …}

or the same as TSV with a header, the turns joined by ` EOS ` in the column `context`. Each row has its place among all
replies, from 0, and digests of the data, the model and the settings. pandas reads either as it is.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dialogpt_jax.chat.scoring import encode_to_score, score_encoded
from dialogpt_jax.data.lines_to_score import LineToScore
from dialogpt_jax.evaluation.harness import digest_of_data, digest_of_model, group_by_length
from dialogpt_jax.evaluation.kept_rows import RepliesFileError, make_rows
from dialogpt_jax.evaluation.replies import another_run, digest_of
from dialogpt_jax.replies.candidates import Candidate
from dialogpt_jax.replies.language_model import LanguageModel

ROWS = 64  # lines that are scored together, and written together
_FIGURES: dict[str, type] = {"logprob": float, "mean": float, "perplexity": float, "pmi": float, "tokens": int}
_PLACE: dict[str, type] = {"index": int, "run": str}


class ScoredReply(NamedTuple):
    """The figures of a reply, as `Candidate` has them.

    Attributes:
      place: the reply's among all of the file, from 0; `index` in the file.
      logprob, mean, perplexity, pmi: in nats.
      tokens: their number, EOS included.
      pieces, logprobs: a text and a log-probability a token, or `None` where they were not asked for.
    """

    place: int
    logprob: float
    mean: float
    perplexity: float
    pmi: float
    tokens: int
    pieces: list[str] | None = None
    logprobs: list[float] | None = None


class ScoresFile(NamedTuple):
    """A file of scores.

    Attributes:
      path: of the file.
      run: what decides the scores now.
      replies: (turns, reply) of each row.
      table: TSV; JSON lines otherwise.
      per_token: with `pieces` and `logprobs`; JSON lines only.
    """

    path: str | os.PathLike[str]
    run: Mapping[str, Any]
    replies: Sequence[tuple[list[str], str]]
    table: bool = False
    per_token: bool = False

    def head(self) -> str:
        return _tsv(["context", "reply", *_FIGURES, *_PLACE]) if self.table else ""

    def line(self, row: ScoredReply) -> str:
        turns, reply = self.replies[row.place]
        figures, place = {name: getattr(row, name) for name in _FIGURES}, (row.place, digest_of(self.run))
        if self.table:
            return _tsv([" EOS ".join(turns), reply, *figures.values(), *place])
        if self.per_token:
            figures |= {"pieces": row.pieces, "logprobs": row.logprobs}
        entry = {"turns": turns, "reply": reply} | figures | dict(zip(_PLACE, place, strict=True))
        return json.dumps(entry, ensure_ascii=False) + "\n"

    def read(self) -> dict[int, ScoredReply]:
        """The rows by their place; none where there is no file, or a part of a first line.

        Raises:
          OSError: it cannot be read.
          RepliesFileError: a line is no such row, or one of another run.
        """
        try:
            data = Path(self.path).read_bytes()
        except FileNotFoundError:
            return {}
        *lines, half = data.split(b"\n")
        head = self.head().encode().removesuffix(b"\n")
        if (self.table and lines and lines[0] != head) or not (lines or self._may_begin(half)):
            raise RepliesFileError(f"{self.path}, line 1: no scores of replies; name another file")
        found, digest = {}, digest_of(self.run)
        for number, line in enumerate(lines, start=1):
            if self.table and number == 1:
                continue
            where = f"{self.path}, line {number}"
            try:
                row, said = self._parse(line.decode("utf-8"))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # UnicodeDecodeError is one
                raise RepliesFileError(
                    f"{where}: no score of a reply; take the line out, or name another file"
                ) from None
            if said != digest:
                raise another_run(where, said, self.run)
            if not 0 <= row.place < len(self.replies) or self.line(row).encode() != line + b"\n":
                raise RepliesFileError(f"{where}: not the score of reply {row.place}; take the line out")
            found[row.place] = row
        return found

    def _may_begin(self, half: bytes) -> bool:
        """Whether a part of a first line is one of this file's, so that nothing is lost if it is written over."""
        texts = ({"turns": turns, "reply": reply} for turns, reply in self.replies)
        starts = [self.head()] if self.table else (json.dumps(text, ensure_ascii=False)[:-1] for text in texts)
        return any(start.encode().startswith(half) or half.startswith(start.encode()) for start in starts)

    def _parse(self, line: str) -> tuple[ScoredReply, str]:
        """The row of a line and the digest of its run; whether the texts and all else agree, `line` tells."""
        if self.table:
            [cells] = csv.reader([line], delimiter="\t", strict=True)
            _, _, *values = cells
            entry = {name: kind(value) for (name, kind), value in zip((_FIGURES | _PLACE).items(), values, strict=True)}
        else:
            entry = json.loads(line)
        names = [*_FIGURES, *(("pieces", "logprobs") if self.per_token else ())]
        return ScoredReply(place=int(entry["index"]), **{name: entry[name] for name in names}), str(entry["run"])


def score_lines(
    lm: LanguageModel,
    lines: Sequence[LineToScore],
    *,
    max_new_tokens: int,
    out: str | os.PathLike[str] | None = None,
    table: bool = False,
    per_token: bool = False,
    progress: Callable[[Sequence[ScoredReply], int], None] | None = None,
) -> tuple[list[ScoredReply], ScoresFile]:
    """A row for each reply of each line, in their order: those that `out` holds already, and the others; and their file.

    A run that is interrupted leaves whole batches in `out`; the same call goes on from there, and ends with the same file,
    byte for byte on the same kind of machine.

    Args:
      lm: the model.
      lines: of `read_lines_to_score`.
      max_new_tokens: contexts are what they would be for a reply of this length.
      out, table, per_token: as in `ScoresFile`; without `out` nothing is written.
      progress: called with the rows that came new and the number that is still to come.

    Raises:
      ValueError: a reply does not fit behind its context; or as `make_rows`.
    """

    def name(i: int, j: int) -> str:
        return f"{lines[i].where}: the reply" if len(lines[i].replies) == 1 else f"{lines[i].where}: reply {j + 1}"

    replies = [line.replies for line in lines]
    contexts, ids = encode_to_score(
        lm, [line.turns for line in lines], replies, max_new_tokens=max_new_tokens, name=name
    )
    begins = np.cumsum([0, *map(len, replies)]).tolist()  # the place of each line's first reply
    groups = group_by_length([len(context) for context in contexts], ROWS)
    batches = [[place for i in group for place in range(begins[i], begins[i + 1])] for group in groups]
    line_of = [i for i, own in enumerate(replies) for _ in own]

    def make(left: list[Sequence[int]]) -> Iterator[list[ScoredReply]]:
        for batch in left:
            group = list(dict.fromkeys(line_of[place] for place in batch))
            found = score_encoded(
                lm, [replies[i] for i in group], [contexts[i] for i in group], [ids[i] for i in group]
            )
            scored = [candidate for own in found for candidate in own]
            yield [_row(lm, place, each, per_token) for place, each in zip(batch, scored, strict=True)]

    said = [(line.turns, reply) for line in lines for reply in line.replies]
    run = {
        "model": digest_of_model(lm),
        "contexts": len(lines),
        "data": digest_of_data(said),
        "max_new_tokens": max_new_tokens,
        "per_token": per_token,
        "rows": ROWS,
        "platform": jax.default_backend(),
    }
    file = ScoresFile("" if out is None else out, run, said, table, per_token)
    return make_rows(None if out is None else file, batches, make, progress), file


def bits_per_byte(rows: Sequence[ScoredReply], texts: Sequence[str]) -> float:
    """Of all the replies together; EOS counted in the bits, not in the bytes, as in `measure_predictions`."""
    return -sum(row.logprob for row in rows) / np.log(2) / sum(len(text.encode()) for text in texts)


def _row(lm: LanguageModel, place: int, each: Candidate, per_token: bool) -> ScoredReply:
    figures = {name: round(getattr(each, name), 6) for name in ("logprob", "mean", "perplexity", "pmi")}
    row = ScoredReply(place, **figures, tokens=len(each.tokens))
    if not per_token:
        return row
    pieces = [lm.tokenizer.token(i) for i in each.tokens.tolist()]
    return row._replace(pieces=pieces, logprobs=[round(p, 6) for p in each.logprobs.tolist()])


def _tsv(cells: Sequence[object]) -> str:
    """A line as pandas and spreadsheets read it: a cell that holds a quote is quoted."""
    line = io.StringIO()
    csv.writer(line, delimiter="\t", lineterminator="\r\n").writerow(cells)  # so that a cell with \r is quoted too
    return line.getvalue().removesuffix("\r\n") + "\n"
