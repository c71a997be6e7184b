"""A directory of ours in transformers and CTranslate2, and theirs in ours: the same logits, the same token ids."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from fakes import ODD, TINY
from reference import relative_error

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import from_params, to_params
from dialogpt_jax.convert.names import same_bits, to_microsoft
from dialogpt_jax.convert.write_gguf import write_gguf
from dialogpt_jax.convert.write_torch import write_torch
from dialogpt_jax.model import forward, init_params
from dialogpt_jax.quantization import quantize
from dialogpt_jax.text.tokenizer import END_OF_TEXT, Tokenizer
from dialogpt_jax.weights.directory import load_params, write_directory
from dialogpt_jax.weights.other_programs import CHAT_TEMPLATE, ExportWarning

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # torch and transformers warn about themselves
]

# Float32 on both sides, whose sums run in other orders: differences are about 1e-6 of the largest logit here.
TOLERANCE = 2e-5
MODEL = GPT2Config(vocab_size=340, n_positions=40, n_embd=64, n_layer=3, n_head=4, eos_token_id=339)
UNTIED = GPT2Config(
    vocab_size=341,
    n_positions=32,
    n_embd=48,
    n_layer=2,
    n_head=3,
    n_inner=9,
    eos_token_id=339,
    tie_word_embeddings=False,
)
# llama.cpp on a CPU takes GELU from a table of float16.
LLAMA_TOLERANCE = 5e-3
TEXTS = ["Does money buy happiness?", "  two  spaces, don't they'll\nnew line\t", "naïve ☕ 漢字 🙂", "a . b", "x" * 30]


def draw(config, seed=0):
    """Parameters with every tensor drawn, large enough for each to be seen."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))

    def one(path, leaf):
        gain = path[-1].key == "scale"
        return (gain + (0.2 if leaf.ndim > 1 else 0.1) * rng.normal(size=leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(one, shapes)
    params["wte"]["embedding"][config.vocab_size :] = 0
    return params


@pytest.fixture(scope="module")
def tokenizer():
    found = Tokenizer.train(["the quick brown fox, the lazy dog; don't they'll we've " * 3, *TEXTS] * 9, 340)
    assert found.vocab_size == MODEL.vocab_size  # CTranslate2 wants them equal
    assert found.end_of_text_id == MODEL.eos_token_id
    return found


def tokens(config):
    return np.random.default_rng(1).integers(0, config.vocab_size, (3, 19))


def their_logits(model, tokens_BT):
    import torch

    with torch.no_grad():
        return model(torch.as_tensor(tokens_BT)).logits.float().numpy()


def our_logits(params, config, tokens_BT):
    return np.asarray(forward(params, config, tokens_BT))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_transformers_loads_a_directory_of_ours(tmp_path, tokenizer, config, max_shard_bytes):
    from transformers import AutoModelForCausalLM

    params = draw(config)
    folder = write_directory(tmp_path / "m", params, config, tokenizer, max_shard_bytes=max_shard_bytes)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert model.config.eos_token_id == config.eos_token_id
    ours = our_logits(params, config, tokens(config))
    assert relative_error(ours, their_logits(model.eval(), tokens(config))) < TOLERANCE


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("safe", [True, False])
def test_we_load_a_directory_of_transformers(tmp_path, config, safe):
    import torch
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(TheirConfig(**config.to_hf())).eval()
    drawn = {name: torch.as_tensor(array) for name, array in from_params(draw(config), config).items()}
    model.load_state_dict(drawn, strict=not config.tie_word_embeddings)
    model.save_pretrained(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    params, found = load_params(tmp_path)
    assert found.tie_word_embeddings == config.tie_word_embeddings
    ours = our_logits(params, found, tokens(config))
    assert relative_error(ours, their_logits(model, tokens(config))) < TOLERANCE


def test_torch_there_and_back_is_bit_for_bit(tmp_path):
    import torch

    from dialogpt_jax.convert.read import read

    tensors = from_params(draw(UNTIED), UNTIED)
    torch.save({f"module.{name}": torch.as_tensor(array).half() for name, array in tensors.items()}, tmp_path / "a.bin")
    params, report = to_params(read(tmp_path / "a.bin").tensors, UNTIED)
    write_torch(tmp_path / "b.pkl", from_params(params, report.config))
    back = torch.load(tmp_path / "b.pkl", weights_only=True)
    there = torch.load(tmp_path / "a.bin", weights_only=True)
    assert {f"module.{name}" for name in back} == there.keys()
    assert all(same_bits(back[name].numpy(), there[f"module.{name}"].numpy()) for name in back)


def test_the_microsoft_layout_is_what_their_old_class_would_load(tmp_path):
    import torch
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    params = draw(MODEL)
    write_torch(tmp_path / "m.pkl", to_microsoft(from_params(params, MODEL), MODEL))
    state = torch.load(tmp_path / "m.pkl", weights_only=True)
    assert state["transformer.h.0.attn.bias"].shape == (1, 1, 40, 40)
    assert torch.equal(state["transformer.h.0.attn.bias"], torch.ones(1, 1, 40, 40).tril())
    state["lm_head.weight"] = state.pop("lm_head.decoder.weight")
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".attn.bias")}
    model = GPT2LMHeadModel(TheirConfig(**MODEL.to_hf())).eval()
    model.load_state_dict(state)
    ours = our_logits(params, MODEL, tokens(MODEL))
    assert relative_error(ours, their_logits(model, tokens(MODEL))) < TOLERANCE


def test_auto_tokenizer_gives_the_same_ids(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(write_directory(tmp_path / "m", draw(MODEL), MODEL, tokenizer))
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == tokenizer.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text_id
    assert theirs(END_OF_TEXT)["input_ids"] == [tokenizer.end_of_text_id]  # theirs reads it as the token
    assert set(theirs(TEXTS[0])) == {"input_ids", "attention_mask"}  # no token types: GPT-2 would embed them
    assert theirs.model_max_length == MODEL.n_positions


def test_their_tokenizer_directory_is_read_by_us(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(write_directory(tmp_path / "m", draw(MODEL), MODEL, tokenizer))
    theirs.save_pretrained(tmp_path / "saved")
    ours = Tokenizer.load(tmp_path / "saved")
    assert [ours.encode(text) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]


def greedy(params, config, tokenizer, turns):
    """The reply, and the ids that it is made of: the context first."""
    import dialogpt_jax as dg

    bot = dg.Bot(jax.tree.map(jax.numpy.asarray, params), config, tokenizer)
    return bot.reply(turns, sampling=dg.Sampling(temperature=0), max_new_tokens=12)


MESSAGES = [
    {"role": "user", "content": "Does money buy happiness?"},
    {"role": "assistant", "content": "  the lazy dog;"},
    {"role": "user", "content": "a . b"},
]
DIALOGUES = [MESSAGES, MESSAGES[:1], [{"role": "user", "content": "naïve ☕"}]]  # of several lengths


def test_transformers_chats_with_a_directory_of_ours(tmp_path, tokenizer):
    from transformers import AutoTokenizer, pipeline

    params = draw(MODEL)
    folder = write_directory(tmp_path / "m", params, MODEL, tokenizer)
    text = AutoTokenizer.from_pretrained(folder)
    for messages in DIALOGUES:
        turns = [message["content"] for message in messages]
        ids = [i for turn in turns for i in (*tokenizer.encode(turn), MODEL.eos_token_id)]
        for prompt in (False, True):
            found = text.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"]
            assert found == ids
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        assert text.apply_chat_template(parts, tokenize=False) == "".join(f"{turn}{END_OF_TEXT}" for turn in turns)
    speak = pipeline("text-generation", model=str(folder), device="cpu", dtype="float32")
    for messages in DIALOGUES:
        said = speak(messages, max_new_tokens=12, do_sample=False)[0]["generated_text"]
        assert said[:-1] == messages
        reply = greedy(params, MODEL, tokenizer, [message["content"] for message in messages])
        assert said[-1] == {"role": "assistant", "content": reply}


def test_a_message_that_nobody_said_is_an_error_in_transformers_too(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(write_directory(tmp_path / "m", draw(MODEL), MODEL, tokenizer))
    with pytest.raises(Exception, match="a system message is no turn of a dialogue; leave it out"):
        text.apply_chat_template([{"role": "system", "content": "Be brief."}, *MESSAGES])


@pytest.mark.llama_cpp
@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_llama_cpp_replies_as_we_do(tmp_path, tokenizer, config):
    reason = "llama.cpp's Python package, which is built from C++: pip install llama-cpp-python"
    llama_cpp = pytest.importorskip("llama_cpp", reason=reason)
    jinja2 = pytest.importorskip("jinja2", reason="comes with llama-cpp-python")
    pytest.importorskip("gguf", reason="the extra `gguf`")
    params = draw(config)
    write_gguf(tmp_path / "m.gguf", from_params(params, config), config, tokenizer, chat_template=CHAT_TEMPLATE)
    n = config.n_positions
    exact = {"type_k": 0, "type_v": 0}  # the cache in float32
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=n, n_threads=1, logits_all=True, verbose=False, **exact)
    assert llama.n_vocab() == config.vocab_size
    for text in [*TEXTS, END_OF_TEXT]:
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    tokens_BT = tokens(config)
    ours_BTV = our_logits(params, config, tokens_BT)
    for row, ours_TV in zip(tokens_BT, ours_BTV, strict=True):
        llama.reset()
        llama.eval(row.tolist())
        assert relative_error(ours_TV, np.asarray(llama.scores[: len(row)])) < LLAMA_TOLERANCE
    render = jinja2.Environment().from_string(llama.metadata["tokenizer.chat_template"]).render
    replies = []
    for messages in DIALOGUES:
        prompt = render(messages=messages, eos_token=END_OF_TEXT)
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        # Its create_chat_completion ends before it begins, since the prompt's last token is the one it stops at.
        generated = itertools.islice(llama.generate(ids, temp=0.0, repeat_penalty=1.0), 12)
        tokens_T = list(itertools.takewhile(lambda token: token != config.eos_token_id, generated))
        replies.append(greedy(params, config, tokenizer, [message["content"] for message in messages]))
        assert tokenizer.decode(tokens_T) == replies[-1]
    assert len(set(replies)) == len(replies)


def test_ctranslate2_converts_a_directory_of_ours(tmp_path, tokenizer):
    import ctranslate2

    params = draw(MODEL)
    folder = write_directory(tmp_path / "m", params, MODEL, tokenizer)
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    tokens_BT = tokens(MODEL)
    ids = ctranslate2.StorageView.from_array(tokens_BT.astype(np.int32))
    lengths = ctranslate2.StorageView.from_array(np.full(len(tokens_BT), tokens_BT.shape[1], np.int32))
    theirs = np.asarray(generator.forward_batch(ids, lengths))
    assert relative_error(our_logits(params, MODEL, tokens_BT), theirs) < TOLERANCE


@pytest.mark.parametrize(
    "changes", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"layer_norm_epsilon": 0.1}]
)
def test_what_ctranslate2_ignores_is_named(tmp_path, tokenizer, changes):
    import ctranslate2

    config = dataclasses.replace(MODEL, **changes)
    params = draw(config)
    with pytest.warns(ExportWarning, match=f"CTranslate2 ignores {next(iter(changes))} .* computes another"):
        folder = write_directory(tmp_path / "m", params, config, tokenizer)
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    tokens_BT = tokens(config)
    ids = ctranslate2.StorageView.from_array(tokens_BT.astype(np.int32))
    lengths = ctranslate2.StorageView.from_array(np.full(len(tokens_BT), tokens_BT.shape[1], np.int32))
    theirs = np.asarray(generator.forward_batch(ids, lengths))
    assert (
        relative_error(our_logits(params, config, tokens_BT), theirs) > 10 * TOLERANCE
    )  # or this is to be told no more
    assert relative_error(our_logits(params, MODEL, tokens_BT), theirs) < TOLERANCE


def test_transformers_and_ctranslate2_refuse_int8(tmp_path):
    """They would else go on with random weights, and a warning."""
    ctranslate2, transformers = pytest.importorskip("ctranslate2"), pytest.importorskip("transformers")
    params = quantize(jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0)))
    folder = str(write_directory(tmp_path / "m", params, MODEL, Tokenizer.train(["text"], 300)))
    for load in (
        transformers.GPT2LMHeadModel.from_pretrained,
        transformers.AutoModelForCausalLM.from_pretrained,
        lambda path: ctranslate2.converters.TransformersConverter(path).convert(str(tmp_path / "ct2")),
    ):
        with pytest.raises(ValueError, match="quant_method"):
            load(folder)
