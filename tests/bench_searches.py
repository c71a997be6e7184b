"""What several replies on a shared prefix cost against single ones: candidates, beams, groups of beams, contrastive search.

    taskset -c 0 python tests/bench_searches.py [--layers 12] [--new 32] [--repeats 5]

Not a test. GPT-2 small's shape, random weights, float32, a 64-token prompt, EOS forbidden. All take turns; the medians of
the wall clock and of the process's CPU time, which other processes disturb less, are told as multiples of one reply.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np

import dialogpt_jax as dg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = dg.GPT2Config.small(n_layer=args.layers)
    params = jax.jit(dg.init_params, static_argnums=0)(config, jax.random.key(0))
    asked = (params, config, np.random.default_rng(0).integers(0, 50_000, (1, 64)).astype(np.int32), [64])
    keys = jax.random.split(jax.random.key(0), 1)
    greedy = {"max_new_tokens": args.new, "sampling": dataclasses.replace(dg.GREEDY, min_new_tokens=args.new)}
    drawn = greedy | {"sampling": dg.Sampling(1.0, top_k=50, min_new_tokens=args.new), "keys": keys}
    runs = {
        "a drawn reply": lambda: dg.generate(*asked, **drawn),
        "16 candidates": lambda: dg.generate_candidates(*asked, candidates=16, **drawn),
        "a greedy reply": lambda: dg.generate(*asked, keys=keys, **greedy),
        "4 beams": lambda: dg.beam_search(*asked, beams=4, **greedy),
        "10 beams": lambda: dg.beam_search(*asked, beams=10, **greedy),
        "10 beams in 5 groups": lambda: dg.beam_search(*asked, beams=10, beam_groups=5, **greedy),
        "contrastive, k 4": lambda: dg.contrastive_search(*asked, **greedy),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())  # compiles, warms
    for _ in range(args.repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"| {args.layers} layers, {args.new} new | wall, s | CPU, s | of one reply, by CPU |\n|---|---|---|---|")
    one = 1.0
    for name, found in times.items():
        wall, cpu = (statistics.median(x) for x in zip(*found, strict=True))
        one = cpu if name.startswith("a ") else one
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {cpu / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
