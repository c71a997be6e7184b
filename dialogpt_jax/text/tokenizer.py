"""Text to token ids and back: a byte-level BPE, run by the `tokenizers` library (the field's own, and written in Rust).

What flows in: a model directory's tokenizer files, or text to learn merges from. What flows out: a `Tokenizer`, whose
`encode` and `decode` are functions of their argument alone.

What a user types is text: `<|endoftext|>` in it is encoded as the characters it is made of, never as the token that ends
a turn. That token is known by its id (`eos_token_id` in the directory's `config.json`), whether or not `tokenizer.json`
calls it special; only `text/dialogue.py` puts it into a sequence, and no decoded text shows it.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dialogpt_jax.arguments import as_path, as_plain, as_whole_number, shown
from dialogpt_jax.config import CONFIG_FILE
from dialogpt_jax.errors import escape_controls
from dialogpt_jax.text.expansion import MOST_TOKEN_CHARACTERS, check_expansion
from dialogpt_jax.text.lines import read_small_file

END_OF_TEXT = "<|endoftext|>"
JSON_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
MOST_ID = 2**31 - 1  # ids are int32


class TokenizerError(ValueError):
    """Tokenizer files that are missing or broken, or text that is not text."""


class Tokenizer:
    """A byte-level BPE.

    Build one with `load`, `from_files` or `train`. Immutable.

    Example:
      >>> bot.tokenizer.decode(bot.tokenizer.encode("Hello there."))
      'Hello there.'
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text_id: int | None = None):
        """A tokenizer of the `tokenizers` library, which is set up for dialogues and kept.

        Args:
          backend: the library's tokenizer.
          end_of_text_id: the token that ends a turn; by default `<|endoftext|>`, where the vocabulary has it.

        Raises:
          TokenizerError: a token is far too long.
        """
        if not isinstance(backend, tokenizers.Tokenizer):
            raise TypeError(
                f"backend is {shown(backend)}; give a `tokenizers.Tokenizer`, or use `load`, `from_files` or `train`"
            )
        if end_of_text_id is None or backend.id_to_token(end_of_text_id) is None:
            end_of_text_id = backend.token_to_id(END_OF_TEXT)
        if end_of_text_id is not None:
            backend.add_special_tokens([backend.id_to_token(end_of_text_id)])  # keeps its id; typed, it is characters
        backend.encode_special_tokens = True
        if (
            getattr(backend.model, "dropout", None) is not None
        ):  # a text has one encoding; merges are dropped in training
            backend.model.dropout = None
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._end_of_text_id = end_of_text_id
        vocab = backend.get_vocab(with_added_tokens=True)
        if (longest := max(map(len, vocab), default=0)) > MOST_TOKEN_CHARACTERS:
            raise TokenizerError(f"a token has {longest:,} characters; at most {MOST_TOKEN_CHARACTERS:,} make sense")
        self._vocab_size = max(vocab.values(), default=-1) + 1

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} ids, {self.end_of_text_id} ends a turn)"

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Tokenizer":
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, from a model directory.

        The token that ends a turn is the `eos_token_id` of its `config.json`; without one it is `<|endoftext|>`.

        Raises:
          TokenizerError: none of the files is there, or one is broken; the message names it.
        """
        folder = as_path("directory", directory)
        if (folder / JSON_FILE).is_file():
            try:
                with _one_error("not a tokenizer file"):
                    text = read_small_file(folder / JSON_FILE)
                    backend = tokenizers.Tokenizer.from_str(text)
                    check_expansion(json.loads(text))
                    return cls(backend, _read_end_of_text_id(folder))
            except TokenizerError as error:
                raise TokenizerError(f"{folder / JSON_FILE}: {error}") from None
        if (folder / VOCAB_FILE).is_file() and (folder / MERGES_FILE).is_file():
            return cls.from_files(folder / VOCAB_FILE, folder / MERGES_FILE, _read_end_of_text_id(folder))
        raise TokenizerError(f"{folder}: no tokenizer here; expected {JSON_FILE}, or {VOCAB_FILE} and {MERGES_FILE}")

    @classmethod
    def from_files(
        cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str], end_of_text_id: int | None = None
    ) -> "Tokenizer":
        """Reads GPT-2's two files, under any name.

        Args:
          vocab: the JSON of tokens and ids.
          merges: the text of merges.
          end_of_text_id: the token that ends a turn; by default `<|endoftext|>`.

        Raises:
          TokenizerError: a file is missing or broken.
        """
        try:
            tokens = json.loads(read_small_file(vocab))
            lines = read_small_file(merges).split("\n")
            lines = lines[1:] if lines[0].startswith("#version") else lines
            pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
            backend = _byte_level(models.BPE(tokens, pairs))
        except Exception as error:  # a missing file, JSON, UTF-8, or the library's bare Exception on a bad merge
            raise TokenizerError(f"{vocab}, {merges}: not GPT-2's vocabulary and merges ({_line(error)})") from None
        return cls(backend, end_of_text_id)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns a BPE of `vocab_size` tokens; `<|endoftext|>` is the last of them.

        Args:
          texts: what to count pairs in.
          vocab_size: at least 257: the bytes and the end.

        Raises:
          TokenizerError: a text is not text.
        """
        vocab_size = as_whole_number("vocab_size", vocab_size, least=257, most=MOST_ID)
        backend = _byte_level(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(_checked_texts(texts), trainer)
        backend.add_special_tokens([END_OF_TEXT])
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end of text included; gaps between them count, since ids are rows of an embedding."""
        return self._vocab_size

    @property
    def end_of_text_id(self) -> int | None:
        """The id of the token that ends a turn, `<|endoftext|>` in GPT-2's vocabulary; `None` where there is none."""
        return self._end_of_text_id

    @property
    def end_of_text(self) -> str | None:
        """That token as the vocabulary writes it."""
        return None if self._end_of_text_id is None else self._backend.id_to_token(self._end_of_text_id)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; every text has some, and the end of text is none of them.

        Raises:
          TokenizerError: the string holds a lone surrogate, which no encoding can write; or a character that only the end
            of text stands for, in a model whose end is a letter.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each, on several threads."""
        texts = list(_checked_texts(texts))
        with _one_error("the tokenizer cannot encode the text; tokenizer.json is damaged or lacks an unknown token"):
            found = [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        end = self._end_of_text_id
        return [self._encode_apart(text) if end in ids else ids for text, ids in zip(texts, found, strict=True)]

    def _encode_apart(self, text: str) -> list[int]:
        """A text of which the vocabulary makes the end of text, as an ordinary token: each character by itself."""
        ids = [i for e in self._backend.encode_batch_fast(list(text), add_special_tokens=False) for i in e.ids]
        if self._end_of_text_id in ids:
            end = self.token(ids[ids.index(self._end_of_text_id)])
            raise TokenizerError(
                f"text holds {end!r}, which ends a turn in this model and cannot be said; leave it out"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: one text, so ids of one axis.

        The end of text and ids that the vocabulary has not are left out; bytes that are not UTF-8 become U+FFFD.

        Raises:
          ValueError: an id is not a whole number from 0.
        """
        plain = as_plain(ids)
        if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
            raise TokenizerError(f"ids is {shown(ids)}; give a list of token ids")
        checked = [as_whole_number("a token id", i, least=0, most=MOST_ID) for i in plain]
        with _one_error("the tokenizer cannot decode the ids; tokenizer.json is damaged"):
            return self._backend.decode([i for i in checked if i != self._end_of_text_id], skip_special_tokens=True)

    def token(self, id: int) -> str:
        """One id as a person reads it: its text, or its name if it is special or an incomplete character."""
        text = self.decode([id])
        return text if text and "\ufffd" not in text else (self._backend.id_to_token(int(id)) or f"<{id}>")

    def token_bytes(self, id: int) -> bytes:
        """What one id adds to a text, in UTF-8, whole characters or not; nothing for the end of text and for no id."""
        written = self._backend.id_to_token(id)
        if written is None or id == self._end_of_text_id:
            return b""
        of_characters = _bytes_of_characters()
        if all(character in of_characters for character in written):
            return bytes(of_characters[character] for character in written)
        return self.decode([id]).encode()

    def to_json(self) -> dict[str, Any]:
        """What `tokenizer.json` holds."""
        return json.loads(self._backend.to_str())

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, and `vocab.json` and `merges.txt` for readers of those (CTranslate2, older tools)."""
        folder = as_path("directory", directory)
        (folder / JSON_FILE).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        state = self.to_json()
        vocab = self._backend.get_vocab(with_added_tokens=True)
        ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
        (folder / VOCAB_FILE).write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
        merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
        (folder / MERGES_FILE).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's visible characters for bytes: themselves where they can be seen, else from 256 on, in order."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's pipeline around a BPE: bytes as visible characters, split by its pattern, no prefix space."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _read_end_of_text_id(folder: Path) -> int | None:
    """`eos_token_id` in a directory's config.json; `None` where it says none. Whoever reads the config finds its faults."""
    try:
        fields = json.loads(read_small_file(folder / CONFIG_FILE))
        found = fields.get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    found = found[0] if isinstance(found, list) and found else found  # transformers allows several; GPT-2's have one
    return found if type(found) is int and 0 <= found < 2**31 else None


def _checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts one by one, each found to be one that UTF-8 can write."""
    plain = as_plain(texts)
    if isinstance(plain, str):
        raise TokenizerError("texts is one text; give a list of texts, or use `encode` for one")
    if isinstance(plain, bytes | Mapping) or not isinstance(plain, Iterable):
        raise TokenizerError(f"texts is {shown(texts)}; give a list of texts")
    for text in plain:
        if not isinstance(text, str):
            raise TokenizerError(f"a text is {shown(text)}; give a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise TokenizerError(f"text holds a lone surrogate, U+{code:04X}, at character {error.start}") from None
        yield text


@contextlib.contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Whatever the library raises within, bare Exceptions and panics of Rust, which are none, as a TokenizerError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what} ({_line(error)})") from None


def _line(error: BaseException) -> str:
    """The library's messages run over several lines, and may quote the file."""
    return escape_controls(" ".join(str(error).split()), keep="")
