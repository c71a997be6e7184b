"""A reply's ids, as they come, to the pieces of text that are shown: whole characters; with a `Safety`, whole sentences."""

from collections.abc import Iterable, Iterator

from dialogpt_jax.ranking.safety import Safety, whole_sentences
from dialogpt_jax.text.tokenizer import Tokenizer


def pieces_of(
    tokens: Iterable[int], tokenizer: Tokenizer, *, ids: list[int], safety: Safety | None = None
) -> Iterator[str]:
    """The pieces of a reply. Joined they are its text, or as much of it as may be said, and at least the default reply.

    Args:
      tokens: the reply's ids, as they come.
      tokenizer: ids to text.
      ids: gets each id that came.
      safety: what must not be said. The reply ends before the sentence in which it finds something.
    """
    said = ""
    for token in tokens:
        ids.append(token)
        whole = tokenizer.decode(ids).rstrip("\ufffd")  # the rest of a character may still come
        if safety is not None:
            whole = whole_sentences(whole)
            if len(whole) > len(said) and safety.why_not(whole) is not None:
                break
        if len(whole) > len(said):
            piece, said = whole[len(said) :], whole
            yield piece
    else:
        whole = tokenizer.decode(ids)
        if safety is None or safety.why_not(whole) is None:
            if len(whole) > len(said):
                yield whole[len(said) :]
            return
    if safety is not None and not said:
        yield safety.default
