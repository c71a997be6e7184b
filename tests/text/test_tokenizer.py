"""The tokenizer: text comes back, what a user types is text, and broken files are one line."""

import fakes
import pytest

from dialogpt_jax.text.tokenizer import END_OF_TEXT, JSON_FILE, MERGES_FILE, VOCAB_FILE, Tokenizer, TokenizerError

TEXTS = [
    "Hello, how are you today?",
    "  two spaces,\ttab\r\nand line ends\n\n",
    "☕",
    "👩‍👩‍👧 and 🏳️‍🌈",
    "שלום עולם \u202eabc",
    "e\u0301 is not é",
    "\x00\x1b[31m\x7f",
    "\ufffd\ufeff\U0010ffff",
    END_OF_TEXT,
    f"a{END_OF_TEXT}b {END_OF_TEXT}",
    "don't I'LL they've",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return fakes.tiny_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_and_holds_no_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids
    assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.end_of_text_id for i in ids)


def test_an_empty_text_has_no_ids_and_a_batch_is_each_text_alone(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_training_merges_and_puts_the_end_last(tokenizer):
    assert tokenizer.vocab_size == 320
    assert tokenizer.end_of_text_id == 319
    assert len(tokenizer.encode("evening")) < len("evening")


def test_the_end_is_left_out_of_text_and_named_in_tokens(tokenizer):
    ids = tokenizer.encode("Hello")
    assert tokenizer.decode([*ids, tokenizer.end_of_text_id]) == "Hello"
    assert tokenizer.token(tokenizer.end_of_text_id) == END_OF_TEXT


def test_one_cup_is_three_tokens_and_two_of_them_are_no_text(tokenizer):
    ids = tokenizer.encode("☕")
    assert len(ids) == 3
    assert tokenizer.decode(ids[:2]).strip("\ufffd") == ""
    assert tokenizer.token(ids[0]) not in ("", "\ufffd")


@pytest.mark.parametrize("text", ["\ud800", "ok \udcff", "\udc00\ud800"])
def test_a_lone_surrogate_is_one_line_that_names_it(tokenizer, text):
    with pytest.raises(TokenizerError, match=r"lone surrogate, U\+D[89C][0-9A-F]{2}, at character \d+$"):
        tokenizer.encode(text)


def test_both_kinds_of_files_give_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    from_json = Tokenizer.load(tmp_path)
    (tmp_path / JSON_FILE).unlink()
    from_pair = Tokenizer.load(tmp_path)
    named = Tokenizer.from_files(tmp_path / VOCAB_FILE, tmp_path / MERGES_FILE)
    for other in (from_json, from_pair, named):
        assert other.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert (other.vocab_size, other.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)


def test_no_tokenizer_is_one_line(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer here; expected tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff\xfe", b"[]", b'{"model": {"type": "BPE"}}'])
@pytest.mark.parametrize("name", [JSON_FILE, VOCAB_FILE])
def test_a_broken_file_is_one_line_that_names_it(tokenizer, tmp_path, name, broken):
    tokenizer.save(tmp_path)
    if name == VOCAB_FILE:
        (tmp_path / JSON_FILE).unlink()
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(TokenizerError, match=name) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_gpt2s_own_files_give_the_ids_that_others_publish(shared):
    tokenizer = Tokenizer.from_files(shared / "data" / "gpt2-vocab.json", shared / "data" / "gpt2-merges.txt")
    # huggingface/transformers, tests/models/gpt2: DialoGPT's prompts
    assert tokenizer.encode("hello") == [31373]
    assert tokenizer.decode([17250, 612, 0]) == "Hi there!"
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (50257, 50256)
    assert 50256 not in tokenizer.encode(END_OF_TEXT)
    assert len(tokenizer.encode("☕")) == 2
