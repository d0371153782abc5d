"""The subcommands and their flags; each loads what it needs when it runs.

Most arguments of the functions are only declarations: the plans of the same field names are filled from the context.
"""
# ruff: noqa: ARG001

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nex_vllm.cli import engine_options, options
from nex_vllm.cli.engine_options import Command, EngineCommand
from nex_vllm.cli.options import CreditName, PartName
from nex_vllm.cli.plans import (
    TABLE_FLAGS,
    fill_plan,
    given_number,
    recording_plan,
    refuse_flags,
    refuse_recording_flags,
)
from nex_vllm.cli.quiet import quiet_vllm
from nex_vllm.errors import InputError

app = typer.Typer(
    name="nex-vllm",
    help="Label-free best-of-n inside vLLM: choose among sampled answers by the model's own neurons (NEX).",
    epilog="\b\nExamples:\n"
    "  nex-vllm demo\n"
    "  nex-vllm calibrate MODEL --prompts prompts.jsonl --out weights.safetensors\n"
    "  vllm serve MODEL --plugin nex --nex-weights weights.safetensors",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from nex_vllm import __version__

        typer.echo(f"nex-vllm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    cls=EngineCommand,
    short_help="Learn neuron weights from a model's own responses.",
    epilog="\b\nExamples:\n"
    "  nex-vllm calibrate Qwen/Qwen3-8B --prompts prompts.jsonl --out weights.safetensors\n"
    "  nex-vllm calibrate MODEL --prompts prompts.jsonl --cache cache --out weights.safetensors\n"
    "  nex-vllm calibrate --from-cache cache --out ablation.safetensors --credit all_active\n\n"
    + engine_options.HELP.format("calibrate MODEL --prompts P --out W"),
)
def calibrate(  # noqa: PLR0913, PLR0917 - one argument per flag
    context: typer.Context,
    out: options.WeightsOut,
    model: options.OptionalModel = None,
    prompts: options.OptionalPrompts = None,
    from_cache: options.FromCache = None,
    cache: options.OptionalCache = None,
    samples: options.Samples = 4,
    top_k: options.TopK = 2000,
    row_tokens: options.RowTokens = 32,
    part: options.Part = PartName.ALL,
    reasoning_end: options.ReasoningEnd = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.9,
    seed: options.Seed = 0,
    credit: options.Credit = CreditName.INTRODUCED,
    rho: options.Rho = 0.95,
    min_run: options.MinRun = 2,
    json_out: options.JsonOut = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
) -> None:
    """Learn neuron weights from a model's own responses to some prompts, without labels.

    Forty to sixty problems of the kind you will ask are enough. Either record and learn in one go (MODEL and
    --prompts), or learn from what was recorded before (--from-cache): as it was recorded or, where they follow from it,
    in rows of --row-tokens and with the --top-k neurons that `sweep` found best.
    """
    from nex_vllm.cli import calibration

    learning = fill_plan(calibration.LearningPlan, context)
    if from_cache is not None:
        refuse_recording_flags(context)
        rows = given_number(context, "top_k"), given_number(context, "row_tokens")
        calibration.run_calibrate_from_cache(from_cache, learning, *rows)
        return
    if model is None or prompts is None:
        missing = "MODEL" if model is None else "--prompts FILE"
        raise InputError(f"{missing} is missing; give MODEL and --prompts FILE, or --from-cache DIR")
    calibration.run_calibrate(recording_plan(context), learning, cache)


@app.command(
    cls=EngineCommand,
    short_help="Sample responses and keep their activations, to calibrate from.",
    epilog="\b\nExamples:\n"
    "  nex-vllm record MODEL --prompts prompts.jsonl --cache cache\n"
    "  nex-vllm record MODEL --prompts prompts.jsonl --cache cache --samples 8 --row-tokens 16\n"
    "  nex-vllm calibrate --from-cache cache --out weights.safetensors\n\n"
    + engine_options.HELP.format("record MODEL --prompts P --cache C"),
)
def record(  # noqa: PLR0913, PLR0917 - one argument per flag
    context: typer.Context,
    model: options.Model,
    prompts: options.Prompts,
    cache: options.Cache,
    samples: options.Samples = 4,
    top_k: options.TopK = 2000,
    row_tokens: options.RowTokens = 32,
    part: options.Part = PartName.ALL,
    reasoning_end: options.ReasoningEnd = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.9,
    seed: options.Seed = 0,
    verbose: options.Verbose = False,
) -> None:
    """Sample responses and keep their activations in a cache, to calibrate from.

    A run that is interrupted, or killed, leaves the responses that had ended in the cache; the same command goes on
    from there.
    """
    from nex_vllm.cli import recording

    recording.run_record(recording_plan(context), cache)


@app.command(
    cls=EngineCommand,
    epilog="\b\nExamples:\n"
    "  nex-vllm score MODEL --weights weights.safetensors --responses responses.jsonl --out scores.jsonl\n"
    "  nex-vllm score MODEL --weights W --responses responses.jsonl --check-noise --out noise.json\n"
    "\n\b\n"
    'Lines like {"prompt": "2 + 2 =", "response": " 4"}; each comes back with a `nex` object. Give\n'
    "`response_token_ids` where you have them: text may be split into other tokens than the model\n"
    "sampled, and has no end-of-sequence token.\n\n"
    + engine_options.HELP.format("score MODEL --weights W --responses R --out S"),
)
def score(  # noqa: PLR0913, PLR0917 - one argument per flag
    context: typer.Context,
    model: options.Model,
    weights: options.Weights,
    responses: options.Responses,
    out: options.ScoresOut,
    check_noise: options.CheckNoise = False,
    accept_other_model: options.AcceptOtherModel = False,
    force: options.Force = False,
    verbose: options.Verbose = False,
) -> None:
    """Score given responses with a model's neuron weights.

    The model reads prompt and response in one pass and generates nothing. The mean over all responses is the model's
    score, by which models can be ranked. A response that cannot be scored gets a null score and says why. With
    --check-noise it says instead how much a score changes with the batch, which is to be small beside the scores'
    spread.
    """
    from nex_vllm.cli import noise, scoring

    quiet_vllm(verbose)
    plan = fill_plan(scoring.ScoringPlan, context)
    if check_noise:
        noise.run_check_noise(plan)
    else:
        scoring.run_score(plan)


@app.command(
    cls=EngineCommand,
    short_help="Say whether choosing helps, selector by selector.",
    epilog="\b\nExamples:\n"
    "  nex-vllm compare MODEL --problems problems.jsonl --weights weights.safetensors --out comparison\n"
    "  nex-vllm compare MODEL --problems hub:aime24 --calibration cache -n 8 --out comparison\n"
    "  nex-vllm compare MODEL --problems p.jsonl --grader check.py:is_right --out comparison\n"
    "  nex-vllm compare comparison/candidates.parquet --selectors nex,shortest,majority\n\n"
    + engine_options.HELP.format("compare MODEL --problems P --out DIR"),
)
def compare(  # noqa: PLR0913, PLR0917 - one argument per flag
    context: typer.Context,
    source: options.Compared,
    problems: options.Problems = None,
    weights: options.ComparedWeights = None,
    calibration: options.ComparedCalibration = None,
    num_candidates: options.Candidates = 4,
    out: options.ComparisonOut = None,
    grader: options.Grader = None,
    extract: options.Extract = None,
    selectors: options.Selectors = None,
    selector_file: options.SelectorFile = None,
    top_k: options.RecordedTopK = None,
    row_tokens: options.RecordedRowTokens = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.9,
    seed: options.Seed = 0,
    no_noise: options.NoNoise = False,
    accept_other_model: options.AcceptOtherModel = False,
    force: options.Force = False,
    verbose: options.Verbose = False,
) -> None:
    """Say whether choosing helps on your own model and problems, label-free or learned, beside a random choice.

    Several candidates are sampled for each problem, every selector chooses among the same ones, and where answers are
    known the choices are graded: accuracy, and the difference to a random choice with its interval. Without answers it
    says who agrees with whom. Without --weights and --calibration NEX itself is left out; with them the weights are
    kept in the directory, and some candidates are scored twice at the end, to set the noise of a score against what
    tells candidates apart. A run that is interrupted, or killed, goes on with the same command; --grader, --extract,
    --selectors and --weights may change then.
    """
    quiet_vllm(verbose)
    from nex_vllm.cli.comparing_table import is_table, run_compare_table

    if is_table(source):
        refuse_flags(context, TABLE_FLAGS, f"has no effect on the candidates in {source}, which are sampled already")
        run_compare_table(Path(source), out, selectors, selector_file, force=force)
        return
    if problems is None or out is None:
        missing = "--problems FILE" if problems is None else "--out DIR"
        raise InputError(f"{missing} is missing; give --problems FILE and --out DIR, or an earlier candidates.parquet")
    if force:
        raise InputError("--force has no effect where candidates are sampled; give a new --out, or leave --force out")
    from nex_vllm.cli import comparing

    comparing.run_compare_model(fill_plan(comparing.ComparisonPlan, context))


@app.command(
    cls=Command,
    short_help="Learn from a few graded problems how much each signal is worth.",
    epilog="\b\nExamples:\n"
    "  nex-vllm fit comparison/candidates.parquet --out selector.json\n"
    "  vllm serve MODEL --plugin nex --nex-selector selector.json",
)
def fit(candidates: options.CandidatesFile, out: options.SelectorOut, force: options.Force = False) -> None:
    """Learn a selector from graded candidates: a weighted sum of all signals, by logistic regression.

    What it gains is measured on problems that it was not fitted to, beside every selector that needs no labels. Twenty
    graded problems are the least.
    """
    from nex_vllm.cli import fitting

    fitting.run_fit(candidates, out, force=force)


@app.command(
    cls=Command,
    short_help="Say what other settings give, from one recording.",
    epilog="\b\nExamples:\n"
    "  nex-vllm record MODEL --prompts prompts.jsonl --cache cache --row-tokens 1\n"
    "  nex-vllm sweep cache --over row_tokens=8,16,32,64 --over top_k=500,1000,2000 --out sweep\n"
    "  nex-vllm sweep cache --over samples=1,2,3,4 --candidates comparison/candidates.parquet",
)
def sweep(  # noqa: PLR0913, PLR0917 - one argument per flag
    context: typer.Context,
    cache: options.SweptCache,
    over: options.Over,
    candidates: options.SweptCandidates = None,
    out: options.SweepOut = None,
    top_k: options.BaseTopK = None,
    row_tokens: options.BaseRowTokens = None,
    credit: options.Credit = CreditName.INTRODUCED,
    rho: options.Rho = 0.95,
    min_run: options.MinRun = 2,
    force: options.Force = False,
) -> None:
    """Say what other settings would have given: the diagnostics, and the accuracy where candidates are graded.

    Nothing is sampled again. A smaller top_k follows from rows of one token, larger rows from smaller ones they are
    made of, the rest from any recording; what does not follow is refused. first_cycle=out leaves out the evidence of
    cycles that begin with a response, which the method counts.
    """
    from nex_vllm.cli import sweeping

    sweeping.run_sweep(fill_plan(sweeping.SweepPlan, context))


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  nex-vllm inspect weights.safetensors\n  nex-vllm inspect cache",
)
def inspect(path: options.Inspected) -> None:
    """Say what is in a weights file or an activation cache."""
    from nex_vllm.cli import inspection

    inspection.run_inspect(path)


@app.command(
    cls=Command,
    short_help="Draw a cache, weights or a comparison as one HTML page.",
    epilog="\b\nExamples:\n"
    "  nex-vllm report cache --out report.html\n"
    "  nex-vllm report weights.safetensors --out weights.html\n"
    "  nex-vllm report comparison --out comparison.html --tokenizer MODEL",
)
def report(
    path: options.Reported,
    out: options.PageOut,
    weights: options.OptionalWeights = None,
    tokenizer: options.TokenizerFolder = None,
    responses: options.ShownResponses = 1000,
    accept_other_model: options.AcceptOtherModel = False,
    force: options.Force = False,
) -> None:
    """Draw what was recorded, learned or compared: one HTML page, and pictures beside it.

    The page is one file that asks nothing of any other host: every response with its phases (E and X), novelty slope
    and cycles, scores, entropies and weights in figures, and, of a comparison, the selectors' table.
    """
    from nex_vllm.cli import reporting
    from nex_vllm.evaluation.report import ReportPlan

    reporting.run_report(ReportPlan(path, out, weights, tokenizer, responses, force, accept_other_model))


@app.command(
    short_help="Try it on a small shipped model, without a GPU.",
    epilog="\b\nExamples:\n  nex-vllm demo\n  nex-vllm demo --problems 200 --out demo-output",
)
def demo(
    problems: Annotated[int, typer.Option(min=1, metavar="N", help="Problems to choose answers for.")] = 40,
    out: options.DemoOut = None,
    verbose: options.Verbose = False,
) -> None:
    """Try it: calibrate a small shipped model, then choose among four answers to problems it has not seen.

    Runs from a source checkout, without a GPU, in about two minutes.
    """
    from nex_vllm.cli import demo as demonstration

    demonstration.run_demo(problems, out, verbose=verbose)
