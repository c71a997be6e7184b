"""`dialogpt train`: flags in; a run with its checkpoints, and the trained model, out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import CompilationCache
from dialogpt_jax.cli.flags import HOW, WHERE, flags_of, make_app, said
from dialogpt_jax.cli.program_cache import keep_compiled_programs
from dialogpt_jax.cli.train_inputs import (
    TrainInputs,
    read_examples,
    read_model,
    read_teachers,
    refuse_another_run,
    sizes_of,
)
from dialogpt_jax.cli.train_pairs import begin_pairs
from dialogpt_jax.cli.train_run import TrainRun
from dialogpt_jax.data.example_options import MAX_LENGTH
from dialogpt_jax.data.pairs import MAX_LENGTH as PAIR_LENGTH
from dialogpt_jax.errors import counted
from dialogpt_jax.freed_memory import keep_freed_memory
from dialogpt_jax.run.options import TOLD, TOPOLOGY, TrainOptions
from dialogpt_jax.training.names import OPTIMIZERS
from dialogpt_jax.training.recipes import named_recipe

DEFAULT_PROMPTS = ("Hello, how are you?", "What do you like to do?")
EXAMPLES = """\
RUN gets checkpoints (Orbax), metrics.jsonl and TensorBoard's files. SIGTERM or Ctrl-C saves and ends with status 0; the \
same command with --resume then ends bit for bit where an unbroken run does. A batch is a function of the seed and the \
step alone, so another number of processes goes on at the very next example. Several processes are started by the \
cluster's own launcher (SLURM, Kubernetes, a TPU VM), each with the same command.

Examples:
  dialogpt data check talk.jsonl                      look at the data first
  dialogpt train --data talk.jsonl --out RUN --steps 200 --export MODEL
  dialogpt train … --resume                           go on where RUN stopped
  dialogpt train --init microsoft/DialoGPT-small --data DIR --valid v.jsonl \\
      --out RUN --steps 5000 --learning-rate 1e-4
  dialogpt train --config small --tokenizer DIR --data DIR --out RUN \\
      --steps 100000 --mesh data=2,fsdp=4 --dtype bfloat16
  dialogpt train --pairs pairs.jsonl --valid held_out.jsonl --out RUN \\
      --export DIR                                    a ranker of replies
  dialogpt train --config large --compile-only --topology v5e:2x4 \\
      --mesh fsdp=8 --max-length 1024 --batch-size 8
"""
app = make_app("train", "dialogpt train --data DIR_OR_FILE --out RUN [OPTIONS]", help_epilogue=EXAMPLES)

# Of flags that the class tells to programmers.
HELP = {
    "dropout": "everywhere in the model (what its config says)",
    "teacher_share": "of the targets that is the teachers', 0 to 1 (0.5)",
    "max_length": f"tokens of an example, where --data is a file ({MAX_LENGTH}); of each text of a pair ({PAIR_LENGTH})",
    "evaluate_every": "evaluate every N steps and at the end; 0: at the end (a tenth of the run, at least 10)",
    "save_every": "a checkpoint every N steps and at the end; 0: at the end (a tenth of the run)",
    "log_every": "a line every N steps",
}
if TYPE_CHECKING:

    class HowFlags(Any): ...

    class WhenFlags(Any): ...
else:
    TYPES = {"optimizer": Literal[OPTIMIZERS], "dtype": Literal["float32", "bfloat16"]}
    HowFlags = flags_of(TrainOptions, HOW, without=(*TOLD, "recipe"), types=TYPES, help=HELP)
    WhenFlags = flags_of(TrainOptions, WHERE, only=TOLD, help=HELP)


@Parameter(name="*", group=HOW)
@dataclasses.dataclass(frozen=True)
class RecipeFlags:
    """Somebody's training, by name."""

    recipe: Annotated[
        Literal["paper"] | None,
        Parameter(metavar="NAME", help="as microsoft/DialoGPT trains, quirks included; flags override its numbers"),
    ] = None
    fixed: Annotated[
        str | None, Parameter(metavar="QUIRK,…", help="with --recipe: these quirks put right (`all`: every one)")
    ] = None


@Parameter(name="*", group=WHERE)
@dataclasses.dataclass(frozen=True)
class WhereFlags:
    """The devices, and what is told on the way."""

    mesh: Annotated[
        str, Parameter(metavar="data=2,fsdp=4", help="how devices share the work (all on data); also tensor=")
    ] = ""
    resume: Annotated[bool, Parameter(help="go on from the newest checkpoint in RUN, if there is one")] = False
    prompt: Annotated[
        list[str] | None,
        Parameter(metavar="TEXT", help="show the reply to this at every evaluation; repeatable"),
    ] = None
    compile_only: Annotated[bool, Parameter(help="compile the step for --topology, tell its costs, and end")] = False
    topology: Annotated[str, Parameter(metavar="CHIP:SHAPE", help="of TPUs, for --compile-only")] = TOPOLOGY
    compilation_cache: CompilationCache = True


@app.default
def run(
    *,
    inputs: TrainInputs = TrainInputs(),  # noqa: B008  (frozen)
    how: HowFlags = HowFlags(),  # noqa: B008
    recipe: RecipeFlags = RecipeFlags(),
    where: WhereFlags = WhereFlags(),
    when: WhenFlags = WhenFlags(),  # noqa: B008
) -> int:
    from dialogpt_jax.parallel.distributed import initialize

    if where.compile_only:
        return _compile_only(inputs, where, options_of(how, when, recipe))
    if inputs.valid_dialogues < 1:
        raise ValueError(f"--valid-dialogues is {inputs.valid_dialogues}; it must be at least 1")
    if not inputs.out or not (inputs.data or inputs.pairs):
        name = "out" if inputs.data or inputs.pairs else "data"
        raise ValueError(f"--{name} is missing: dialogpt train --data DIR_OR_FILE --out RUN; --help shows more")
    if "teacher_share" in said(how) and not inputs.teacher:
        raise ValueError("--teacher-share goes with --teacher MODEL")
    if inputs.export is not None:
        from dialogpt_jax.weights.directory import check_target

        check_target(inputs.export, replace=False, advice="name another place, or delete it")
        if Path(inputs.export).resolve() == Path(inputs.out).resolve():
            raise ValueError(
                f"--export is {inputs.export}, the folder of the run; choose another, such as {inputs.out}/model"
            )
    keep_freed_memory()  # before jax has threads
    initialize()
    if where.compilation_cache:
        keep_compiled_programs()  # a run that goes on compiles nothing again
    return _train(inputs, where, options_of(how, when, recipe), how.seed or 0)


def _train(inputs: TrainInputs, where: WhereFlags, options: TrainOptions, seed: int) -> int:
    import jax

    from dialogpt_jax.parallel.distributed import gather
    from dialogpt_jax.parallel.mesh import make_mesh, parse_mesh
    from dialogpt_jax.run.fit import fit
    from dialogpt_jax.weights.directory import write_directory

    first = jax.process_index() == 0
    report: Callable[[str], None] = streams.show if first else (lambda line: None)
    mesh = make_mesh(parse_mesh(where.mesh))
    refuse_another_run(inputs.out, resume=where.resume)
    if inputs.pairs is None:
        begun = _begin_dialogues(inputs, where, options, seed=seed, report=report)
    elif where.prompt:
        raise ValueError("--prompt does not go with --pairs: a ranker writes no replies")
    else:
        begun = begin_pairs(inputs, options, seed=seed)
    report(
        f"{begun.config.num_parameters:,} parameters, {counted(len(begun.examples), 'examples')}, "
        f"{counted(options.steps, 'steps')} on "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device{'s' * (mesh.size > 1)}"
    )
    if begun.told:
        report(begun.told)
    fitted = fit(
        begun.params,
        begun.config,
        begun.examples,
        begun.options,
        out=inputs.out,
        resume=where.resume,
        mesh=mesh,
        teachers=begun.teachers,
        objective=begun.objective,
        evaluate=begun.evaluate,
        sample=begun.sample,
        report=report,
    )
    if fitted.stopped:
        report(f"go on with the same command and --resume{'; nothing was exported' if inputs.export else ''}")
    elif inputs.export is not None:
        whole = gather(fitted.params)
        if first:
            write_directory(inputs.export, whole, begun.config, begun.tokenizer)
            report(f"wrote {inputs.export}: {begun.use.format(inputs.export)}")
    else:
        model = str(Path(inputs.out) / "model")
        report(
            f"the trained model is a checkpoint in {inputs.out}: the same command with `--resume --export {model}` makes a "
            f"model directory of it; {begun.use.format(model)}"
        )
    return 0


def _begin_dialogues(
    inputs: TrainInputs, where: WhereFlags, options: TrainOptions, *, seed: int, report: Callable[[str], None]
) -> TrainRun:
    """A language model, and the dialogues that it learns."""
    import jax

    from dialogpt_jax.data.formats import held_out
    from dialogpt_jax.evaluation.validation import make_evaluation, make_sampling
    from dialogpt_jax.training.objective import LANGUAGE_MODEL

    dialogues, dropped = ([], "") if inputs.valid is None else held_out(inputs.valid, inputs.valid_dialogues)
    if dropped:
        report(dropped)
    params, config, tokenizer, source = read_model(inputs, seed=seed)
    examples = read_examples(
        inputs, config, tokenizer, source, report, max_length=options.max_length, resume=where.resume
    )
    evaluate = sample = None
    if dialogues:
        if examples.info["reverse"]:
            dialogues = [turns[::-1] for turns in dialogues]
        evaluate = make_evaluation(config, tokenizer, dialogues)
    if jax.process_count() == 1 and not examples.info["reverse"]:
        sample = make_sampling(config, tokenizer, where.prompt or DEFAULT_PROMPTS)
    teachers, told = read_teachers(inputs, tokenizer), ""
    if teachers:
        names = ", ".join(
            f"{name} ({teacher.config.num_parameters:,} parameters)"
            for name, teacher in zip(inputs.teacher or (), teachers, strict=True)
        )
        told = (
            f"learning from {names}, {options.teacher_share:.0%} of the targets, and {1 - options.teacher_share:.0%} from "
            "the data: loss and ppl of a step are of both together, valid_loss of the data alone"
        )
    return TrainRun(
        params=params,
        config=config,
        tokenizer=tokenizer,
        examples=examples,
        options=options,
        objective=LANGUAGE_MODEL,
        teachers=teachers,
        evaluate=evaluate,
        sample=sample,
        told=told,
        use="talk to it with `dialogpt chat --model {}`",
    )


def options_of(how: HowFlags, when: WhenFlags, recipe: RecipeFlags) -> TrainOptions:
    """The options that the flags say; what they do not say is the recipe's, or the default."""
    return TrainOptions(**said(how), **said(when), recipe=named_recipe(recipe.recipe, recipe.fixed))


def _compile_only(inputs: TrainInputs, where: WhereFlags, options: TrainOptions) -> int:
    from dialogpt_jax.chat.loading import bundled_directory
    from dialogpt_jax.parallel.mesh import parse_mesh
    from dialogpt_jax.run.dry_run import dry_run, render, topology_devices
    from dialogpt_jax.weights.directory import read_config
    from dialogpt_jax.weights.hub import resolve

    topology_devices(where.topology)  # without its compiler all else is in vain
    if inputs.config is None:
        begin = bundled_directory() if inputs.init is None else resolve(inputs.init, revision=inputs.revision)
        config = read_config(begin)
    else:
        config = sizes_of(inputs.config)
    streams.tell(f"compiling for {where.topology}; the large model takes some minutes")
    report = dry_run(config, options, topology=where.topology, mesh=parse_mesh(where.mesh))
    streams.show(render(report))
    return 0 if all(program.fits for program in report.programs) else 1
