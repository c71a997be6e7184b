"""What each step from logits to a token costs, against a decoding step of GPT-2 small's shape in the same process.

    python tests/bench_processors.py [--rows 1 8] [--repeats 15] [--only xtc dry]

Not a test. Random weights and logits, float32; contexts of 256 tokens and replies of 24, which repeat themselves. All take
turns, and the best and the median of their runs are shown, since machines are noisy. A processor's cost is its time less
that of a plain draw (of the greedy choice, for what greedy has too). Read the shares, not the milliseconds.
"""

import argparse
import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import dialogpt_jax as dg
from dialogpt_jax.decoding import stream
from dialogpt_jax.decoding.logits import by_row, choose, top_k_bucket, xtc_now
from dialogpt_jax.decoding.processor_arrays import history_of, scopes_of, token_lists
from dialogpt_jax.decoding.processors import ReplyState
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.decoding.sampling import Sampling

TIMES = 10  # in one call, so that its start does not count
WIDTH, SLOTS, SAID = 256, 64, 24
PLAIN = {"temperature": 1.0, "min_new_tokens": None}
DRAWN = {
    "a draw": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "top_k and top_p": {"top_k": 50, "top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "typical_p": {"typical_p": 0.9},
    "epsilon_cutoff": {"epsilon_cutoff": 1e-4},
    "eta_cutoff": {"eta_cutoff": 1e-3},
    "xtc": {"xtc_probability": 0.5},
    "xtc with top_k": {"top_k": 50, "xtc_probability": 0.5},
}
WORDS = [(int(i), int(i) + 1) for i in range(100, 200)]
PROCESSED = {
    "repetition_penalty": {"repetition_penalty": 1.2, "penalty_scope": "context"},
    "presence_penalty": {"presence_penalty": 0.5, "penalty_scope": "context"},
    "frequency_penalty": {"frequency_penalty": 0.5, "penalty_scope": "context"},
    "no_repeat_ngram": {"no_repeat_ngram": 3, "ngram_scope": "context"},
    "dry": {"dry_multiplier": 0.8, "dry_breakers": [13, 198]},
    "bad_words (100)": {"bad_words": WORDS},
    "logit_bias (100)": {"logit_bias": dict.fromkeys(WORDS, -1.0)},
    "min_new_tokens": {"min_new_tokens": 5},
    "decay": {"decay_start": 3, "decay_factor": 1.1},
    "suppress_tokens (100)": {"suppress_tokens": list(range(100))},
    "forced_end": {"forced_end": True},
}


@functools.partial(jax.jit, static_argnames="bucket")
def draw_often(logits_MV, state, sampling, keys_M, bucket):
    """Token after token; logits and what was said depend on the last, so that nothing is done once for all."""
    uniforms_M = jax.vmap(jax.random.uniform)(keys_M)

    def once(_, last_M):
        return choose(
            logits_MV + 1e-9 * last_M[:, None].astype(jnp.float32),
            uniforms_M,
            dataclasses.replace(state, tokens_MR=state.tokens_MR + jnp.minimum(last_M, 0)[:, None]),
            sampling=sampling,
            bucket=bucket,
            xtc_now_M=xtc_now(sampling, keys_M, last_M),
        )[0]

    return jax.lax.fori_loop(0, TIMES, once, jnp.zeros(logits_MV.shape[0], jnp.int32))


def drawing(config, rows: int, settings: dict, *, greedy: bool):
    """A call that takes a token `TIMES` times."""
    random = np.random.default_rng(0)
    sampling = Sampling(**{**PLAIN, **({"temperature": None} if greedy else {}), **settings})
    tail_V = -1.4 * np.log(np.arange(1, config.vocab_size + 1))  # by Zipf's law, as a language model's
    logits_MV = np.full((rows, config.padded_vocab_size), -np.inf, np.float32)
    for m in range(rows):
        logits_MV[m, : config.vocab_size] = random.permutation(tail_V) + 0.5 * random.standard_normal(len(tail_V))
    contexts_BT = np.tile(random.integers(0, 50000, (rows, WIDTH // 4)), 4)
    lengths_B = np.full(rows, WIDTH, np.int32)
    tokens_MR = np.zeros((rows, SLOTS), np.int32)
    tokens_MR[:, :SAID] = contexts_BT[:, 8 : 8 + SAID]
    state = ReplyState(
        tokens_MR=tokens_MR,
        counts_M=np.full(rows, SAID, np.int32),
        limits_M=np.full(rows, SLOTS, np.int32),
        history={s: history_of(s, contexts_BT, lengths_B, WIDTH, config.eos_token_id) for s in scopes_of(sampling)},
        lists=token_lists(sampling, rows, config),
        eos=config.eos_token_id,
    )
    keys_M = jax.random.split(jax.random.key(0), rows)
    held = jax.device_put((logits_MV, state, by_row(sampling, rows), keys_M))
    bucket = top_k_bucket(sampling, config.vocab_size)
    return lambda: jax.block_until_ready(draw_often(*held, bucket=bucket))


def stepping(params, config, rows: int):
    """A call that makes four tokens of the model."""
    most = 256
    tokens_BT = np.random.default_rng(0).integers(0, 50000, (rows, 64))
    how = {"sampling": Sampling(None, min_new_tokens=most), "keys": jax.random.split(jax.random.key(0), rows)}
    request = assemble(config, tokens_BT, np.full(rows, 64), max_new_tokens=most, **how)
    cache = stream.empty_cache(config, rows, 64, jnp.float32)
    state, _ = stream.start(params, config, request, cache)

    def run():
        nonlocal state
        state, said = stream.steps(params, config, state, 4)
        said.block_until_ready()

    return run


def taking_turns(runs: dict, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each: the best, and the median."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles, warms
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: np.array([min(each), statistics.median(each)]) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--only", nargs="+", default=[""])
    args = parser.parse_args()
    config = dg.GPT2Config.small()
    params = dg.init_params(config, jax.random.key(0))
    for rows in args.rows:
        runs = {"step": stepping(params, config, rows), "greedy": drawing(config, rows, {}, greedy=True)}
        runs["a draw"] = drawing(config, rows, {}, greedy=False)
        for every, greedy in ((DRAWN, False), (PROCESSED, True)):
            chosen = {name: settings for name, settings in every.items() if any(word in name for word in args.only)}
            runs |= {name: drawing(config, rows, settings, greedy=greedy) for name, settings in chosen.items()}
        found = taking_turns(runs, args.repeats)
        step = found["step"] / 4
        print(
            f"{rows} row(s): a step {1e3 * step[0]:.1f} ms (median {1e3 * step[1]:.1f}); of it, by the best (the median)"
        )
        for name, seconds in found.items():
            if name == "step":
                continue
            base = 0.0 if name in ("greedy", "a draw") else found["a draw" if name in DRAWN else "greedy"]
            cost = (seconds - base) / TIMES
            share = cost / step
            print(f"  {name:24} {1e3 * cost[0]:7.3f} ms  {share[0]:6.3f} ({share[1]:.3f})")


if __name__ == "__main__":
    main()
