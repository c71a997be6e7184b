"""Tokens a second of greedy decoding against transformers in the same process, and against what memory allows.

    python tests/bench_decode.py [--rows 1 8] [--layers 12] [--new 64]

Not a test. GPT-2 small's shape, random weights, a 64-token prompt, no early end. The two take turns and the best of their
runs counts, since machines are noisy: read the ratio, not the figure. A decode step reads every parameter once, so bytes a
step over the measured copy bandwidth is a floor for its time at one row.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

import dialogpt_jax as dg
from dialogpt_jax.convert.mapping import from_params


def ours(params, config, tokens_BT, new: int):
    sampling = dataclasses.replace(dg.GREEDY, min_new_tokens=new)
    lengths_B = np.full(len(tokens_BT), tokens_BT.shape[1], np.int32)
    keys = jax.random.split(jax.random.key(0), len(tokens_BT))

    def run() -> None:
        out = dg.generate(params, config, tokens_BT, lengths_B, sampling=sampling, max_new_tokens=new, keys=keys)
        jax.block_until_ready(out)

    return run


def theirs(params, config, tokens_BT, new: int, dtype: str):
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_hf()))
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in from_params(params, config).items()}
    model.load_state_dict(tensors, strict=False)
    model = model.to(getattr(torch, dtype)).eval()
    ids = torch.from_numpy(tokens_BT).long()

    def run() -> None:
        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=config.eos_token_id,
            )

    return run


def best(runs: dict, repeats: int) -> dict[str, float]:
    """The shortest time of each, the runs taking turns."""
    times = {name: float("inf") for name in runs}
    for run in runs.values():
        run()  # compiles, warms
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def copy_bandwidth() -> float:
    """Bytes read a second by a plain sum over 400 MB."""
    x = jnp.ones(100_000_000, jnp.float32)
    total = jax.jit(jnp.sum)
    return 4e8 / best({"sum": lambda: total(x).block_until_ready()}, 5)["sum"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-torch", action="store_true")
    args = parser.parse_args()
    config = dg.GPT2Config.small(n_layer=args.layers)
    params = jax.jit(dg.init_params, static_argnums=0)(config, jax.random.key(0))
    bandwidth = copy_bandwidth()
    print(f"{config.num_parameters:,} parameters; memory is read at {bandwidth / 1e9:.0f} GB/s")
    print("| rows | dtype | ours, tokens/s | transformers | ratio | ms a step | floor by bytes |")
    print("|---|---|---|---|---|---|---|")
    for rows in args.rows:
        tokens_BT = np.random.default_rng(0).integers(0, 50_000, (rows, 64)).astype(np.int32)
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
            runs = {"ours": ours(cast, config, tokens_BT, args.new)}
            if not args.without_torch:
                runs["theirs"] = theirs(params, config, tokens_BT, args.new, dtype)
            times = best(runs, args.repeats)
            rates = {name: rows * args.new / t for name, t in times.items()}
            peer = f"{rates['theirs']:.0f} | {rates['ours'] / rates['theirs']:.2f}" if "theirs" in rates else "– | –"
            step, floor = times["ours"] / args.new * 1e3, config.num_parameters * size / bandwidth * 1e3
            print(f"| {rows} | {dtype} | {rates['ours']:.0f} | {peer} | {step:.1f} | {floor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
