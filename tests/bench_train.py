"""Tokens a second of one training step against transformers and torch in the same process: forward, backward, AdamW.

    python tests/bench_train.py [--size bundled small] [--rows 32] [--length 128] [--peak] [--without-torch]

Not a test. Fresh weights, full rows, no dropout, gradients clipped by their global norm. bfloat16 is bfloat16 products over
float32 parameters: ours by a cast copy, torch's by autocast. The two take turns and the best of their steps counts, since
machines are noisy: read the ratio, not the figure. `--peak` measures what a large matrix product reaches here; MFU is
the model's own operations (`training_flops`) over that.
"""

import argparse
import dataclasses
import functools
import json
import os
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_decode import best

import dialogpt_jax as dg
from dialogpt_jax.convert.mapping import from_params
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.parallel.chips import training_flops
from dialogpt_jax.training.optim import adamw
from dialogpt_jax.training.step import init_state, train_step

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0


def config_of(size: str, layers: int | None) -> dg.GPT2Config:
    if size == "bundled":
        text = resources.files("dialogpt_jax.bundled").joinpath("model/config.json").read_text(encoding="utf-8")
        config = dg.GPT2Config.from_hf(json.loads(text))
    else:
        config = getattr(dg.GPT2Config, size)()
    return dataclasses.replace(
        config, n_layer=layers or config.n_layer, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
    )


def ours(params, config, tokens_BT, dtype: str, accumulate: int):
    optimizer = adamw(optax.constant_schedule(RATE), weight_decay=DECAY, clip=CLIP)
    step = jax.jit(
        functools.partial(
            train_step, config=config, optimizer=optimizer, compute_dtype=jnp.dtype(dtype), accumulate=accumulate
        ),
        donate_argnames="state",
    )
    # A copy, since the state is donated.
    states = [init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(0))]
    batch = Batch(jnp.asarray(tokens_BT), jnp.ones(tokens_BT.shape, jnp.float32))

    def run() -> None:
        state, _ = step(states.pop(), batch)
        states.append(jax.block_until_ready(state))

    return run


def theirs(params, config, tokens_BT, dtype: str, accumulate: int):
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_hf())).train()
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in from_params(params, config).items()}
    network.load_state_dict(tensors, strict=False)
    network.config.use_cache = False
    vectors = [p for name, p in network.named_parameters() if p.ndim == 1]
    matrices = [p for name, p in network.named_parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    parts = torch.from_numpy(tokens_BT).long().chunk(accumulate)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        for ids in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = network(ids, labels=ids).loss
            (loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()

    return run


def matmul_peak(dtype: str, size: int) -> float:
    """Operations a second of the best of some square products."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    # Weights with the output first, as the model has them; float32 means float32 on every platform.
    precision = "highest" if dtype == "float32" else None
    product = jax.jit(lambda a, b: jnp.einsum("MI,OI->MO", a, b, precision=precision))
    return 2 * size**3 / best({"product": lambda: product(a, b).block_until_ready()}, 10)["product"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["bundled"], choices=["bundled", "small", "medium", "large"])
    parser.add_argument("--layers", type=int, help="instead of the size's own number")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=int, nargs="?", const=2048, help="measure products of this size (2048), for MFU")
    parser.add_argument("--without-torch", action="store_true")
    args = parser.parse_args()
    peaks = {dtype: matmul_peak(dtype, args.peak) if args.peak else float("nan") for dtype in args.dtype}
    print(f"{jax.devices()[0].device_kind}; {args.rows} × {args.length} tokens in {args.accumulate} part(s)")
    print("| size | parameters | dtype | ours, tokens/s | torch | ratio | ours, GFLOP/s | product, GFLOP/s | MFU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in args.size:
        config = config_of(size, args.layers)
        params = jax.jit(dg.init_params, static_argnums=0)(config, jax.random.key(0))
        shape = (args.rows, args.length)
        tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
        for dtype in args.dtype:
            runs = {"ours": ours(params, config, tokens_BT, dtype, args.accumulate)}
            if not args.without_torch:
                runs["theirs"] = theirs(params, config, tokens_BT, dtype, args.accumulate)
            rates = {name: tokens_BT.size / t for name, t in best(runs, args.repeats).items()}
            peer = f"{rates['theirs']:,.0f} | {rates['ours'] / rates['theirs']:.2f}" if "theirs" in rates else "– | –"
            reached, peak = rates["ours"] * training_flops(config, 1, args.length) / args.length, peaks[dtype]
            mfu = f"{peak / 1e9:,.0f} | {reached / peak:.0%}" if args.peak else "– | –"
            cells = f"{size} | {config.num_parameters:,} | {dtype} | {rates['ours']:,.0f} | {peer}"
            print(f"| {cells} | {reached / 1e9:,.1f} | {mfu} |", flush=True)


if __name__ == "__main__":
    main()
