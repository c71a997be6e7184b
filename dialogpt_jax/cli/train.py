"""Train a model: fine-tune one, or begin from nothing; on a laptop, several GPUs or a TPU pod.

  dialogpt data check talk.jsonl                                               look at the data first
  dialogpt train --data talk.jsonl --out RUN --steps 200 --export MODEL        fine-tune the model in the package
  dialogpt train --init microsoft/DialoGPT-small --data DIR --valid v.jsonl --out RUN --steps 5000 --learning-rate 1e-4
  dialogpt train --config small --tokenizer DIR --data DIR --out RUN --steps 100000 --mesh data=2,fsdp=4 --dtype bfloat16
  dialogpt train … --resume                                                    go on where the run in RUN stopped
  dialogpt train --config large --compile-only --topology v5e:2x4 --mesh fsdp=8 --max-length 1024 --batch-size 8

RUN gets checkpoints (Orbax), metrics.jsonl and TensorBoard's files. SIGTERM or Ctrl-C saves and ends with status 0; the
same command with --resume then ends bit for bit where an unbroken run does. A batch is a function of the seed and the
step alone, so another number of processes goes on at the very next example. Several processes are started by the
cluster's own launcher (SLURM, Kubernetes, a TPU VM), each with the same command.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.program_cache import OFF_VARIABLE, keep_compiled_programs
from dialogpt_jax.cli.train_inputs import read_examples, read_model, refuse_another_run, sizes_of

DEFAULT_PROMPTS = ("Hello, how are you?", "What do you like to do?")
_SCHEDULES = "constant, linear, cosine, noam, noamwd, trapezoid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument(
        "--data",
        metavar="DIR_OR_FILE",
        help="a folder of `dialogpt data prepare`, or a file of dialogues (`dialogpt data check --help` shows its forms)",
    )
    what.add_argument(
        "--valid", metavar="FILE", help="held-out dialogues: evaluated at step 0, at intervals, at the end"
    )
    what.add_argument("--valid-dialogues", type=int, default=500, metavar="N", help="evaluate on the first N (500)")
    what.add_argument("--out", metavar="RUN", help="the folder of the run")
    what.add_argument("--export", metavar="DIR", help="write the trained model there, as a model directory")
    what.add_argument(
        "--init", metavar="MODEL", help="begin from this directory or Hub name (default: the model in the package)"
    )
    what.add_argument("--revision", help="branch, tag or commit of a Hub model")
    what.add_argument(
        "--config",
        metavar="small|medium|large|FILE",
        help="begin from nothing, with these sizes; with --init: grow the model to these blocks and positions",
    )
    what.add_argument(
        "--tokenizer", metavar="DIR", help="with --config: the tokenizer; with --init: one that extends the model's"
    )
    what.add_argument("--max-length", type=int, metavar="T", help="tokens of an example, where --data is a file (128)")
    what.add_argument(
        "--train-on",
        metavar="replies|all|last|NAME",
        help="which turns are learned, of a file: what `assistant` says where messages have roles, else every turn after "
        "the first (replies); every turn after the first; the last; or one speaker's",
    )
    what.add_argument(
        "--joined",
        type=int,
        metavar="N",
        help="of a file: each dialogue also stands N times among others as one long dialogue (3 where all are single "
        "exchanges, at most 10,000; else 0)",
    )
    what.add_argument("--reverse", action="store_true", help="a backward (MMI) model, of a file")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int, metavar="N", help="of the optimiser (1000)")
    how.add_argument(
        "--batch-size", type=int, metavar="B", help="examples of full length in a step, everywhere together (32)"
    )
    how.add_argument(
        "--accumulate", type=int, metavar="A", help="compute a batch in A parts: less memory, same result (1)"
    )
    how.add_argument("--learning-rate", type=float, metavar="R", help="the schedule's peak; noam scales it (1e-4)")
    how.add_argument("--warmup", type=int, metavar="W", help="steps up to it (a tenth of the run, at most 1000)")
    how.add_argument("--schedule", metavar="NAME", help=f"{_SCHEDULES} (linear)")
    how.add_argument("--decay", type=int, metavar="N", help="steps of a trapezoid's fall, or between noamwd's halvings")
    how.add_argument("--optimizer", choices=("adamw", "muon"), help="(adamw)")
    how.add_argument("--weight-decay", type=float, metavar="D", help="of matrices and embeddings (0.01)")
    how.add_argument("--embedding-decay", type=float, metavar="D", help="of the embeddings alone (--weight-decay)")
    how.add_argument("--adam-share", type=float, metavar="S", help="with muon: Adam's rate over Muon's (0.2)")
    how.add_argument(
        "--average",
        type=float,
        metavar="D",
        help="evaluate and export a running average of the parameters: 0.99 (none)",
    )
    how.add_argument("--b2", type=float, metavar="B", help="of Adam (0.999)")
    how.add_argument("--clip", type=float, metavar="C", help="greatest norm of the gradient (1.0); 0: none")
    how.add_argument("--dropout", type=float, metavar="P", help="(what the model's config says)")
    how.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the products; all that is kept is float32 (float32)"
    )
    how.add_argument("--seed", type=int, metavar="N", help="of the data's order, dropout and fresh weights (0)")
    how.add_argument("--buckets", type=int, metavar="N", help="lengths of batches, each a program to compile (8)")
    how.add_argument("--checkpoint-blocks", action="store_true", help="a third more computing for much less memory")
    how.add_argument(
        "--recipe", choices=("paper",), help="as microsoft/DialoGPT trains, quirks included; flags override its numbers"
    )
    how.add_argument("--fixed", metavar="QUIRK,…", help="with --recipe: these quirks put right (`all`: every one)")
    where = parser.add_argument_group("where and when")
    where.add_argument("--mesh", metavar="data=2,fsdp=4", help="how devices share the work (all on data); also tensor=")
    where.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in RUN, if there is one")
    where.add_argument("--log-every", type=int, metavar="N", help="a line every N steps (10)")
    where.add_argument("--evaluate-every", type=int, metavar="N", help="(a tenth of the run)")
    where.add_argument("--save-every", type=int, metavar="N", help="a checkpoint every N steps (a tenth of the run)")
    where.add_argument("--keep", type=int, metavar="K", help="newest checkpoints that stay, beside the best (2)")
    where.add_argument(
        "--prompt", action="append", metavar="TEXT", help="show the reply to this at every evaluation; repeatable"
    )
    where.add_argument(
        "--compile-only", action="store_true", help="compile the step for --topology, tell its costs, and end"
    )
    where.add_argument("--topology", default="v5e:2x4", metavar="T", help="of TPUs, for --compile-only (v5e:2x4)")
    where.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help=f"do not keep compiled programs in the user's cache folder (also: {OFF_VARIABLE}=1)",
    )


def run(args: argparse.Namespace) -> int:
    from dialogpt_jax.parallel.distributed import initialize

    if args.compile_only:
        return _compile_only(args)
    if args.valid_dialogues < 1:
        raise ValueError(f"--valid-dialogues is {args.valid_dialogues}; it must be at least 1")
    for name in ("data", "out"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is missing: dialogpt train --data DIR_OR_FILE --out RUN; --help shows more")
    if args.export is not None:
        from dialogpt_jax.weights.directory import check_target

        check_target(args.export, replace=False)
        if Path(args.export).resolve() == Path(args.out).resolve():
            raise ValueError(
                f"--export is {args.export}, the folder of the run; choose another, such as {args.out}/model"
            )
    initialize()
    if not args.no_compilation_cache:
        keep_compiled_programs()  # a run that goes on compiles nothing again
    return _train(args)


def _train(args: argparse.Namespace) -> int:
    import jax

    from dialogpt_jax.data.formats import held_out
    from dialogpt_jax.evaluation.validation import make_evaluation, make_sampling
    from dialogpt_jax.parallel.distributed import gather
    from dialogpt_jax.parallel.mesh import make_mesh, parse_mesh
    from dialogpt_jax.run.fit import fit
    from dialogpt_jax.weights.directory import write_directory

    first = jax.process_index() == 0
    report = streams.show if first else (lambda line: None)
    options = options_of(args)
    mesh = make_mesh(parse_mesh(args.mesh or ""))
    refuse_another_run(args)
    params, config, tokenizer, source = read_model(args)
    examples = read_examples(args, config, tokenizer, source, report)
    evaluate = sample = None
    if args.valid is not None:
        dialogues, dropped = held_out(args.valid, args.valid_dialogues)
        if dropped:
            report(dropped)
        if examples.info["reverse"]:
            dialogues = [turns[::-1] for turns in dialogues]
        evaluate = make_evaluation(config, tokenizer, dialogues)
    if jax.process_count() == 1 and not examples.info["reverse"]:
        sample = make_sampling(config, tokenizer, args.prompt or DEFAULT_PROMPTS)
    report(
        f"{config.num_parameters:,} parameters, {len(examples):,} examples, {options.steps:,} steps on "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device{'s' * (mesh.size > 1)}"
    )
    fitted = fit(
        params,
        config,
        examples,
        options,
        out=args.out,
        resume=args.resume,
        mesh=mesh,
        evaluate=evaluate,
        sample=sample,
        report=report,
    )
    if fitted.stopped:
        report(f"go on with the same command and --resume{'; nothing was exported' if args.export else ''}")
    elif args.export is not None:
        whole = gather(fitted.params)
        if first:
            write_directory(args.export, whole, config, tokenizer)
            report(f"wrote {args.export}: talk to it with `dialogpt chat --model {args.export}`")
    return 0


def options_of(args: argparse.Namespace) -> Any:
    """The options that the flags say; what they do not say is the recipe's, or the default."""
    from dialogpt_jax.run.options import TrainOptions
    from dialogpt_jax.training.recipes import named_recipe

    fields = {field.name for field in dataclasses.fields(TrainOptions)}
    said = {name: value for name, value in vars(args).items() if name in fields and value is not None}
    return TrainOptions(**said | {"recipe": named_recipe(args.recipe, args.fixed)})


def _compile_only(args: argparse.Namespace) -> int:
    from dialogpt_jax.chat.bot import bundled_directory
    from dialogpt_jax.parallel.mesh import parse_mesh
    from dialogpt_jax.run.dry_run import dry_run, render
    from dialogpt_jax.weights.directory import read_config
    from dialogpt_jax.weights.hub import resolve

    if args.config is None:
        config = read_config(bundled_directory() if args.init is None else resolve(args.init, revision=args.revision))
    else:
        config = sizes_of(args.config)
    options = options_of(args)
    streams.tell(f"compiling for {args.topology}; the large model takes some minutes")
    report = dry_run(config, options, topology=args.topology, mesh=parse_mesh(args.mesh or ""))
    streams.show(render(report))
    return 0 if all(program.fits for program in report.programs) else 1
