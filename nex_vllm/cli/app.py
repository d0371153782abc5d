"""The subcommands and their flags; each loads what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nex_vllm.cli import options
from nex_vllm.cli.options import CreditName
from nex_vllm.cli.quiet import quiet_vllm
from nex_vllm.errors import InputError

if TYPE_CHECKING:
    from nex_vllm.cli.calibration import LearningPlan
    from nex_vllm.cli.recording import RecordingPlan

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
    epilog="\b\nExamples:\n"
    "  nex-vllm calibrate Qwen/Qwen3-8B --prompts prompts.jsonl --out weights.safetensors\n"
    "  nex-vllm calibrate MODEL --prompts prompts.jsonl --cache cache --out weights.safetensors\n"
    "  nex-vllm calibrate --from-cache cache --out ablation.safetensors --credit all_active"
)
def calibrate(  # noqa: PLR0913, PLR0917 - one argument per flag
    context: typer.Context,
    out: options.WeightsOut,
    model: options.OptionalModel = None,
    prompts: options.OptionalPrompts = None,
    from_cache: options.FromCache = None,
    cache: options.OptionalCache = None,
    samples: options.Samples = 1,
    top_k: options.TopK = 2000,
    row_tokens: options.RowTokens = 32,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.9,
    seed: options.Seed = 0,
    credit: options.Credit = CreditName.INTRODUCED,
    rho: options.Rho = 0.95,
    min_run: options.MinRun = 2,
    force: options.Force = False,
    verbose: options.Verbose = False,
) -> None:
    """Learn neuron weights from a model's own responses to some prompts, without labels.

    Forty to sixty problems of the kind you will ask are enough. Either record and learn in one go (MODEL and
    --prompts), or learn from what was recorded before (--from-cache).
    """
    from nex_vllm.cli import calibration

    learning = _learning_plan(out, rho, min_run, credit, force)
    if from_cache is not None:
        _refuse_recording_flags(context)
        calibration.learn_from_cache(from_cache, learning)
        return
    if model is None or prompts is None:
        missing = "MODEL" if model is None else "--prompts FILE"
        raise InputError(f"{missing} is missing; give MODEL and --prompts FILE, or --from-cache DIR")
    plan = _recording_plan(
        model, prompts, samples, (top_k, row_tokens), max_tokens, (temperature, top_p), seed, verbose
    )
    calibration.run_calibrate(plan, learning, cache)


@app.command(
    epilog="\b\nExamples:\n"
    "  nex-vllm record MODEL --prompts prompts.jsonl --cache cache\n"
    "  nex-vllm record MODEL --prompts prompts.jsonl --cache cache --samples 4 --row-tokens 16\n"
    "  nex-vllm calibrate --from-cache cache --out weights.safetensors"
)
def record(  # noqa: PLR0913, PLR0917 - one argument per flag
    model: options.Model,
    prompts: options.Prompts,
    cache: options.Cache,
    samples: options.Samples = 1,
    top_k: options.TopK = 2000,
    row_tokens: options.RowTokens = 32,
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

    plan = _recording_plan(
        model, prompts, samples, (top_k, row_tokens), max_tokens, (temperature, top_p), seed, verbose
    )
    recording.run_record(plan, cache)


@app.command(
    epilog="\b\nExamples:\n"
    "  nex-vllm score MODEL --weights weights.safetensors --responses responses.jsonl --out scores.jsonl\n"
    "\n\b\n"
    'Lines like {"prompt": "2 + 2 =", "response": " 4"}; each comes back with a `nex` object. Give\n'
    "`response_token_ids` where you have them: text may be split into other tokens than the model\n"
    "sampled, and has no end-of-sequence token."
)
def score(
    model: options.Model,
    weights: Annotated[Path, typer.Option(metavar="WEIGHTS", help="The weights file to score with.")],
    responses: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSON lines with `prompt` or `messages`, and `response` (text) or `response_token_ids` (exact).",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON lines file to write.")],
    force: options.Force = False,
    verbose: options.Verbose = False,
) -> None:
    """Score given responses with a model's neuron weights.

    The model reads prompt and response in one pass and generates nothing. The mean over all responses is the model's
    score, by which models can be ranked. A response that cannot be scored gets a null score and says why.
    """
    from nex_vllm.cli import scoring

    quiet_vllm(verbose)
    scoring.run_score(scoring.ScoringPlan(model, weights, responses, out, force, verbose))


@app.command(
    epilog="\b\nExamples:\n  nex-vllm inspect weights.safetensors\n  nex-vllm inspect cache",
)
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A weights file, or the directory of a cache.")],
) -> None:
    """Say what is in a weights file or an activation cache."""
    from nex_vllm.cli import inspection

    inspection.run_inspect(path)


@app.command(
    epilog="\b\nExamples:\n  nex-vllm demo\n  nex-vllm demo --problems 200 --out demo-output",
)
def demo(
    problems: Annotated[int, typer.Option(min=1, metavar="N", help="Test problems to choose answers for.")] = 40,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep weights, cache and candidates in this new directory; by default nothing is kept.",
            show_default=False,
        ),
    ] = None,
    verbose: options.Verbose = False,
) -> None:
    """Try it: calibrate a small shipped model, then choose the best of three answers to problems it has not seen.

    Runs from a source checkout, without a GPU, in a few minutes.
    """
    from nex_vllm.cli import demo as demonstration

    demonstration.run_demo(problems, out, verbose=verbose)


def _learning_plan(out: Path, rho: float, min_run: int, credit: CreditName, force: bool) -> LearningPlan:
    from nex_vllm.cli.calibration import LearningPlan

    if not 0 < rho < 1:
        raise InputError(f"--rho is {rho:g}, expected a probability between 0 and 1, both excluded")
    return LearningPlan(out, rho, min_run, credit.value, force)


def _recording_plan(
    model: str,
    prompts: Path,
    samples: int,
    rows: tuple[int, int],
    max_tokens: int | None,
    sampling: tuple[float, float],
    seed: int,
    verbose: bool,
) -> RecordingPlan:
    from nex_vllm.cli.recording import RecordingPlan

    quiet_vllm(verbose)
    temperature, top_p = sampling
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p is {top_p:g}, expected a probability above 0 and up to 1")
    return RecordingPlan(model, prompts, samples, *rows, max_tokens, temperature, top_p, seed, verbose)


_LEARNING_FLAGS = frozenset({"out", "from_cache", "credit", "rho", "min_run", "force", "verbose"})


def _refuse_recording_flags(context: typer.Context) -> None:
    """Refuse flags that would have no effect, rather than let the user believe that they had.

    Raises:
        InputError: the model or a flag of the recording was given beside --from-cache.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _LEARNING_FLAGS and source is not None and source.name == "COMMANDLINE":
            shown = "MODEL" if name == "model" else parameter.opts[0]
            raise InputError(
                f"{shown} has no effect on what --from-cache learns from, which is recorded already; leave it out, or "
                "leave out --from-cache"
            )
