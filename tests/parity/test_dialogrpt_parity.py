"""A ranker against transformers' `GPT2ForSequenceClassification` and the authors' `.pth`: equal probabilities."""

import dataclasses

import numpy as np
import pytest
from ranking.rankers import CONFIG, REPLIES, TOKENIZER, TURNS, draw_ranker, draw_ranker_tensors, ids_of

import dialogpt_jax as dg
from dialogpt_jax.cli.main import main
from dialogpt_jax.convert.mapping import from_params

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # torch and transformers warn about themselves
]

# Float32 on both sides, whose sums run in other orders.
TOLERANCE = 1e-5
SAID = [
    reply for reply in REPLIES if reply
]  # by a pad that is EOS, transformers would not find the end of an empty one


def their_model():
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(**CONFIG.to_hf(), num_labels=1)).eval()
    model.load_state_dict({name: torch.as_tensor(array) for name, array in draw_ranker_tensors().items()})
    return model


def their_probabilities(model, texts) -> np.ndarray:
    """Right-padded by EOS, as the authors do; the end is then the last token that is no EOS."""
    import torch

    model.config.pad_token_id = CONFIG.eos_token_id
    width = max(map(len, texts))
    tokens_BT = torch.tensor([text + [CONFIG.eos_token_id] * (width - len(text)) for text in texts])
    with torch.no_grad():
        return torch.sigmoid(model(tokens_BT).logits)[:, 0].numpy()


def test_probabilities_are_those_of_torch():
    model = their_model()
    for turns in (TURNS, TURNS[:1]):
        theirs = their_probabilities(model, [ids_of(turns, reply) for reply in SAID])
        np.testing.assert_allclose(draw_ranker().score(turns, SAID), theirs, atol=TOLERANCE)
        assert np.ptp(theirs) > 0.2


def test_transformers_loads_a_directory_of_ours(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    draw_ranker().save(tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == "GPT2ForSequenceClassification"
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert model.config.num_labels == 1
    text = "<|endoftext|>".join([turn.strip() for turn in TURNS] + [SAID[0]])
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ids == ids_of(TURNS, SAID[0])
    found = their_probabilities(model.eval(), [ids_of(TURNS, reply) for reply in SAID])
    np.testing.assert_allclose(found, draw_ranker().score(TURNS, SAID), atol=TOLERANCE)


@pytest.mark.parametrize("safe", [True, False])
def test_we_load_a_directory_of_transformers(tmp_path, safe):
    import torch

    model = their_model()
    model.save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    if not safe:  # as on the Hub
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    ranker = dg.load_ranker(tmp_path)
    np.testing.assert_array_equal(ranker.score(TURNS, SAID), draw_ranker().score(TURNS, SAID))


@pytest.mark.parametrize("new_format", [True, False])
def test_the_authors_pth_converts(tmp_path, capsys, new_format):
    import torch

    n = CONFIG.n_positions
    tensors = {f"transformer.h.{i}.attn.bias": np.tri(n, dtype=np.float32)[None, None] for i in range(CONFIG.n_layer)}
    tensors |= draw_ranker_tensors()
    state = {name: torch.as_tensor(array) for name, array in tensors.items()}
    torch.save(state, tmp_path / "updown.pth", _use_new_zipfile_serialization=new_format)
    assert main(["inspect", str(tmp_path / "updown.pth")]) == 0
    assert "what        DialogRPT ranker" in capsys.readouterr().out
    (tmp_path / "text").mkdir()
    TOKENIZER.save(tmp_path / "text")
    words = ["--tokenizer", str(tmp_path / "text"), "--heads", str(CONFIG.n_head)]
    assert main(["convert", str(tmp_path / "updown.pth"), str(tmp_path / "out"), *words]) == 0
    assert "dropped  transformer.h.*.attn.bias" in capsys.readouterr().out
    ranker = dg.load_ranker(tmp_path / "out")
    assert dataclasses.replace(ranker.config, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0) == CONFIG
    written = from_params(ranker.params, ranker.config)
    for name, array in draw_ranker_tensors().items():
        np.testing.assert_array_equal(written[name], array)
    np.testing.assert_allclose(ranker.score(TURNS, SAID), draw_ranker().score(TURNS, SAID), atol=TOLERANCE)
