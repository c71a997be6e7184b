"""The bundled model, exported, says in transformers what it says here: token by token, greedily.

Letters: B rows, T tokens, R tokens of a reply, V vocabulary.
"""

import dataclasses

import jax
import numpy as np
import pytest

import dialogpt_jax as dg

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

# Logits reach about 10 and both programs know them to about 1e-5; a smaller lead than this is a near tie.
NEAR_TIE = 1e-4
NEW = 200

DIALOGUES = [
    ["Hi!"],
    ["What is your favorite movie?"],
    ["Hello.", "Hi, how are you?", "I am fine, thanks. What did you do today?"],
    ["Do you have any pets?", "Yes, I have a dog.", "What is his name?"],
    ["I love music."],
    ["Who is your favorite actor?", "I like Tom Hanks.", "Me too! Which of his films do you like best?"],
    ["It is raining again."],
    ["Did you see the game last night?", "No, who won?", "My team did, of course. It was close."],
]


def test_the_exported_model_replies_alike_in_transformers(tmp_path):
    bot = dg.load()
    bot.save(tmp_path / "exported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    prompts = [bot.encode(turns, max_new_tokens=NEW) for turns in DIALOGUES]
    for turns, prompt in zip(DIALOGUES, prompts, strict=True):
        assert reader("".join(turn + reader.eos_token for turn in turns))["input_ids"] == prompt
    lengths_B = np.array([len(prompt) for prompt in prompts])
    tokens_BT = np.zeros((len(prompts), lengths_B.max()), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
    keys = jax.random.split(jax.random.key(0), len(prompts))
    ended = compared = 0
    for minimum in (1, NEW):  # replies that end by themselves; then long ones
        out = dg.generate(
            bot.params,
            bot.config,
            tokens_BT,
            lengths_B,
            sampling=dataclasses.replace(dg.GREEDY, min_new_tokens=minimum),
            max_new_tokens=NEW,
            keys=keys,
        )
        for row, prompt in enumerate(prompts):
            ids_T = torch.tensor([prompt])
            with torch.no_grad():
                reply = theirs.generate(
                    ids_T,
                    attention_mask=torch.ones_like(ids_T),
                    do_sample=False,
                    min_new_tokens=minimum,
                    max_new_tokens=NEW,
                    output_scores=True,
                    return_dict_in_generate=True,
                    pad_token_id=bot.config.eos_token_id,
                )
            expected_R = reply.sequences[0, len(prompt) :].numpy()
            best_R2 = torch.stack([score[0].topk(2).values for score in reply.scores]).numpy()
            ties = np.flatnonzero(best_R2[:, 0] - best_R2[:, 1] < NEAR_TIE)
            sure = int(ties[0]) if len(ties) else len(expected_R)
            ours_R = np.asarray(out.tokens[row, : out.lengths[row]])
            np.testing.assert_array_equal(ours_R[:sure], expected_R[:sure])
            if sure == len(expected_R):
                assert len(ours_R) == len(expected_R)
                ended += bool(out.finished[row])
            compared += sure
    assert ended >= len(prompts)
    assert compared > 0.8 * len(prompts) * NEW
