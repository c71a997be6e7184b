"""The tokenizer: text comes back, what a user types is text, and broken files are one line."""

import json

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


def test_what_a_broken_file_says_is_escaped(tmp_path):
    (tmp_path / JSON_FILE).write_text(json.dumps({"version": "\x1b[2J\n"}))
    with pytest.raises(TokenizerError, match=r"version '\\x1b\[2J"):
        Tokenizer.load(tmp_path)


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


def unflagged(tokenizer, *, change=lambda fields: None) -> dict:
    """The tokenizer's file with the end of text an ordinary added token."""
    fields = json.loads(tokenizer._backend.to_str())
    assert [token["special"] for token in fields["added_tokens"]] == [True]
    fields["added_tokens"][0]["special"] = False
    change(fields)
    return fields


def only_in_the_vocabulary(fields):
    end = fields["added_tokens"].pop()
    fields["model"]["vocab"][end["content"]] = end["id"]


def a_word_as_a_whole(fields):
    only_in_the_vocabulary(fields)
    fields["model"]["ignore_merges"] = True
    fields["pre_tokenizer"]["use_regex"] = False


def renamed(fields):
    fields["added_tokens"][0]["content"] = "</s>"


@pytest.mark.parametrize("change", [lambda fields: None, only_in_the_vocabulary, a_word_as_a_whole, renamed])
@pytest.mark.parametrize(
    "config", [None, {"eos_token_id": 319}, {"eos_token_id": [319, 0]}, {"eos_token_id": None}, "{"]
)
def test_the_end_goes_by_its_id_where_the_file_does_not_call_it_special(tokenizer, tmp_path, change, config):
    (tmp_path / JSON_FILE).write_text(json.dumps(unflagged(tokenizer, change=change)))
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    if change is renamed and not (isinstance(config, dict) and config["eos_token_id"]):
        assert loaded.end_of_text_id is None  # nobody says which token ends a turn
        return
    text = "</s>" if change is renamed else END_OF_TEXT
    assert loaded.end_of_text_id == 319
    assert loaded.token(319) == text
    for typed in (text, f"a{text}b {text}", f"Hello{text}"):
        assert 319 not in loaded.encode(typed)
        assert loaded.decode(loaded.encode(typed)) == typed
    assert loaded.decode([*loaded.encode("Hello"), 319]) == "Hello"
    loaded.save(tmp_path)  # another reader of the file gets it right, too
    assert [token["special"] for token in json.loads((tmp_path / JSON_FILE).read_text())["added_tokens"]] == [True]


def test_an_ordinary_token_that_ends_turns_is_never_typed(tokenizer, tmp_path):
    word, letter = tokenizer.encode("evening")[-1], tokenizer.encode("!")[0]
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": word}))
    loaded = Tokenizer.load(tmp_path)
    assert word not in loaded.encode("evening")
    assert loaded.decode(loaded.encode("this evening")) == "this evening"
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": letter}))
    loaded = Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="text holds '!', which ends a turn in this model"):
        loaded.encode("Hi!")


def test_an_end_outside_the_vocabulary_is_that_of_the_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 50256}))
    assert Tokenizer.load(tmp_path).end_of_text_id == 319


def broken(tmp_path, tokenizer, **fields) -> Tokenizer:
    """The tokenizer from a file in which these fields are others."""
    (tmp_path / JSON_FILE).write_text(json.dumps(tokenizer.to_json() | fields))
    return Tokenizer.load(tmp_path)


def test_a_panic_of_the_library_is_one_line(tmp_path, tokenizer):
    with pytest.raises(TokenizerError, match=r"tokenizer.json: not a tokenizer file \(.*charsmap") as caught:
        broken(tmp_path, tokenizer, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]},
    ],
    ids=["words", "pieces"],
)
def test_a_tokenizer_without_an_unknown_token_says_so(tmp_path, tokenizer, model):
    found = broken(tmp_path, tokenizer, model=model, pre_tokenizer=None)
    with pytest.raises(TokenizerError, match=r"cannot encode the text; tokenizer.json is damaged or lacks an unknown"):
        found.encode("Hello")


def test_a_text_has_one_encoding_where_the_file_asks_for_dropped_merges(tmp_path, tokenizer):
    model = tokenizer.to_json()["model"] | {"dropout": 0.9}
    found = broken(tmp_path, tokenizer, model=model)
    for text in TEXTS[:3] * 3:
        assert found.encode(text) == tokenizer.encode(text)


def test_gaps_between_ids_count(tmp_path, tokenizer):
    """A file of 320 tokens whose ids reach 400 does not fit 320 rows."""
    model = tokenizer.to_json()["model"]
    vocab = {token: 400 if number == 5 else number for token, number in model["vocab"].items()}
    assert broken(tmp_path, tokenizer, model=model | {"vocab": vocab}).vocab_size == 401


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("step", "value", "times"),
    [
        ("normalizer", replace("a", "a" * 300), "300"),
        ("normalizer", replace("", "a" * 300, "Regex"), "301"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 300}, "301"),
        ("normalizer", {"type": "Sequence", "normalizers": [replace("a", "aa")] * 9}, "512"),
        ("normalizer", {"type": "Sequence", "normalizers": [replace("a", "aa")] * 5000}, "a billion or more"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 2}, "324"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTES] * 9}, "512"),
        ("decoder", {"type": "Sequence", "decoders": [replace("a", "a" * 300), BYTES]}, "600"),
    ],
)
def test_a_file_that_blows_texts_up_is_refused(tmp_path, tokenizer, step, value, times):
    told = f"its {step} makes a text up to {times} times as long; at most 256 make sense"
    with pytest.raises(TokenizerError, match=told) as caught:
        broken(tmp_path, tokenizer, **{step: value})
    assert "\n" not in str(caught.value)


def test_steps_that_real_files_have_are_not(tmp_path, tokenizer):
    inner = [
        {"type": "NFKC"},
        {"type": "Lowercase"},
        replace("\\s+", " ", "Regex"),
        replace(" ", "_"),
        replace("``", '"'),
    ]
    found = broken(tmp_path, tokenizer, normalizer={"type": "Sequence", "normalizers": inner})
    assert found.decode(found.encode("``Hi  There")) == '"hi_there'


def test_a_token_as_long_as_a_book_is_refused(tmp_path, tokenizer):
    model = tokenizer.to_json()["model"]
    vocab = {"a" * 100_001 if number == 5 else token: number for token, number in model["vocab"].items()}
    with pytest.raises(TokenizerError, match="a token has 100,001 characters; at most 100,000 make sense"):
        broken(tmp_path, tokenizer, model=model | {"vocab": vocab})
