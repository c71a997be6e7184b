"""Text to token ids and back: a byte-level BPE, run by the `tokenizers` library (the field's own, and written in Rust).

What flows in: a model directory's tokenizer files, or text to learn merges from. What flows out: a `Tokenizer`, whose
`encode` and `decode` are functions of their argument alone.

What a user types is text: `<|endoftext|>` in it is encoded as the characters it is made of, never as the token that ends
a turn. That token has an id (`config.eos_token_id`), and only `text/dialogue.py` puts it into a sequence.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
JSON_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"


class TokenizerError(ValueError):
    """Tokenizer files that are missing or broken, or text that is not text."""


class Tokenizer:
    """A byte-level BPE.

    Build one with `load`, `from_files` or `train`. Immutable.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Tokenizer":
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, from a model directory.

        Raises:
          TokenizerError: none of the files is there, or one is broken; the message names it.
        """
        folder = Path(directory)
        if (folder / JSON_FILE).is_file():
            try:
                return cls(tokenizers.Tokenizer.from_str((folder / JSON_FILE).read_text(encoding="utf-8")))
            except Exception as error:  # the library raises bare Exception
                raise TokenizerError(f"{folder / JSON_FILE}: not a tokenizer file ({_line(error)})") from None
        if (folder / VOCAB_FILE).is_file() and (folder / MERGES_FILE).is_file():
            return cls.from_files(folder / VOCAB_FILE, folder / MERGES_FILE)
        raise TokenizerError(f"{folder}: no tokenizer here; expected {JSON_FILE}, or {VOCAB_FILE} and {MERGES_FILE}")

    @classmethod
    def from_files(cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str]) -> "Tokenizer":
        """Reads GPT-2's two files, under any name.

        Raises:
          TokenizerError: a file is missing or broken.
        """
        try:
            tokens = json.loads(Path(vocab).read_text(encoding="utf-8"))
            lines = Path(merges).read_text(encoding="utf-8").split("\n")
            lines = lines[1:] if lines[0].startswith("#version") else lines
            pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
            backend = _byte_level(models.BPE(tokens, pairs))
        except Exception as error:  # a missing file, JSON, UTF-8, or the library's bare Exception on a bad merge
            raise TokenizerError(f"{vocab}, {merges}: not GPT-2's vocabulary and merges ({_line(error)})") from None
        return cls(backend)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns a BPE of `vocab_size` tokens; `<|endoftext|>` is the last of them.

        Args:
          texts: what to count pairs in.
          vocab_size: at least 257: the bytes and the end.
        """
        backend = _byte_level(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(texts, trainer)
        backend.add_special_tokens([END_OF_TEXT])
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of ids, `<|endoftext|>` included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def end_of_text_id(self) -> int | None:
        """The id of `<|endoftext|>`, where the vocabulary has it."""
        return self._backend.token_to_id(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; every text has some, and none of them is special.

        Raises:
          TokenizerError: the string holds a lone surrogate, which no encoding can write.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, on several threads."""
        for text in texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(text[error.start])
                raise TokenizerError(f"text holds a lone surrogate, U+{code:04X}, at character {error.start}") from None
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the end-of-text token is left out, and bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token(self, id: int) -> str:
        """One id as a person reads it: its text, or its name if it is special or an incomplete character."""
        text = self.decode([id])
        return text if text and "\ufffd" not in text else (self._backend.id_to_token(int(id)) or f"<{id}>")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, and `vocab.json` and `merges.txt` for readers of those (CTranslate2, older tools)."""
        folder = Path(directory)
        self._backend.save(str(folder / JSON_FILE))
        state = json.loads(self._backend.to_str())
        vocab = self._backend.get_vocab(with_added_tokens=True)
        ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
        (folder / VOCAB_FILE).write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
        merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
        (folder / MERGES_FILE).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's pipeline around a BPE: bytes as visible characters, split by its pattern, no prefix space."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return backend


def _line(error: Exception) -> str:
    """The library's messages run over several lines."""
    return " ".join(str(error).split())
