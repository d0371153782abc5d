"""The flags of the command line, each described once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class CreditName(StrEnum):
    """Which neurons of an exploring run are credited."""

    INTRODUCED = "introduced"
    ALL_ACTIVE = "all_active"


class PartName(StrEnum):
    """Which part of a response counts."""

    ALL = "all"
    REASONING = "reasoning"


def _path(text: str) -> Path:
    """Read a path from the command line.

    Raises:
        typer.BadParameter: it is empty, which `Path` takes for the current directory, or the ``-`` of other programs.
    """
    if text in {"", "-"}:
        raise typer.BadParameter(
            f"{text!r} is not a path here, and standard input and output are not used; give the path of a file or "
            "directory (./- for one that is called -)"
        )
    return Path(text)


def path_option(metavar: str, help: str, *names: str) -> Any:  # noqa: A002 - typer's own word
    """Declare a flag that takes a path; ``names`` where it is not called like its argument."""
    return typer.Option(*names, metavar=metavar, parser=_path, help=help, show_default=False)


MODEL_HELP = "A model's folder, or its name on the Hugging Face hub."

PROMPTS_HELP = "JSON lines with `prompt` (text) or `messages` (a chat), and optionally a unique `id`."
RESPONSES_HELP = "JSON lines with `prompt` or `messages`, and `response` (text) or `response_token_ids` (exact)."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
OptionalModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Prompts = Annotated[Path, path_option("FILE", PROMPTS_HELP)]
OptionalPrompts = Annotated[Path | None, path_option("FILE", PROMPTS_HELP)]
Responses = Annotated[Path, path_option("FILE", RESPONSES_HELP)]
Weights = Annotated[Path, path_option("WEIGHTS", "The weights file to score with.")]
WeightsOut = Annotated[Path, path_option("WEIGHTS", "The weights file to write.")]
JsonOut = Annotated[
    Path | None, path_option("FILE", "Write the summary and the diagnostics to this file too, as JSON.", "--json")
]
ScoresOut = Annotated[
    Path, path_option("FILE", "The JSON lines file to write; with --check-noise a JSON file with the noise.")
]
CheckNoise = Annotated[
    bool,
    typer.Option(
        "--check-noise",
        help="Score up to 64 of the responses twice, in large batches and one by one, and write how far the scores "
        "differ instead of the scores.",
    ),
]
Cache = Annotated[Path, path_option("DIR", "The activation cache: a new directory, or one to go on with.")]
OptionalCache = Annotated[
    Path | None,
    path_option(
        "DIR",
        "Record into this activation cache, so that a run can be continued and learned from again; the weights come "
        "from all that is in it.",
    ),
]
FromCache = Annotated[Path | None, path_option("DIR", "Learn from this activation cache; no model is needed.")]
DemoOut = Annotated[
    Path | None,
    path_option("DIR", "Keep weights, calibration and comparison in this new directory; by default nothing is kept."),
]
Inspected = Annotated[
    Path, typer.Argument(metavar="PATH", parser=_path, help="A weights file, or the directory of a cache.")
]
Reported = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", parser=_path, help="The directory of a cache or of a comparison, or a weights file."
    ),
]
PageOut = Annotated[Path, path_option("FILE.html", "The page to write; pictures get its name and one of their own.")]
OptionalWeights = Annotated[
    Path | None,
    path_option(
        "WEIGHTS",
        "Score by these weights; by default a cache is scored by those that it gives itself, and a comparison by those "
        "that it kept.",
    ),
]
TokenizerFolder = Annotated[
    Path | None,
    path_option("DIR", "Folder with the model's tokenizer.json; by default the model's own, where it is here."),
]
ShownResponses = Annotated[int, typer.Option(min=0, metavar="N", help="Responses on the page, at most.")]
Samples = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Responses for each prompt. One makes the calibration a lottery, which chooses otherwise when it is "
        "repeated, and the diagnostics that would say so need at least two.",
    ),
]
TopK = Annotated[int, typer.Option(min=1, metavar="K", help="Neurons kept per token, over all layers together.")]
RowTokens = Annotated[int, typer.Option(min=1, metavar="W", help="Response tokens per row.")]
Part = Annotated[
    PartName,
    typer.Option(help="Which part of a response counts: all of it, or its reasoning, until its thinking ends."),
]
ReasoningEnd = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="The text that ends the thinking, such as </think>; by default the reasoning parser's, where one is given "
        "(-- --reasoning-parser NAME).",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Longest response in tokens; by default what the model's context leaves.",
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option(min=0.0, metavar="T", help="Sampling temperature.")]
TopP = Annotated[float, typer.Option(metavar="P", help="Sample from the smallest set of tokens of this probability.")]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=(1 << 62), metavar="N", help="Response i is sampled with seed N + i, so that a run is repeatable."
    ),
]
Credit = Annotated[CreditName, typer.Option(help="Credit the neurons first seen in an exploring run, or all active.")]
Rho = Annotated[float, typer.Option(metavar="P", help="Probability of staying in a state in the segmentation.")]
MinRun = Annotated[int, typer.Option(min=1, metavar="N", help="Shortest run of rows that the segmentation keeps.")]
Compared = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|CANDIDATES", help="A model to sample from, or the candidates.parquet of an earlier comparison."
    ),
]
Problems = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="JSON lines with `prompt` or `messages`, and optionally `answer` and a unique `id`; or a local copy of "
        "AIME, GPQA, MATH-500, GSM8K, HMMT or BRUMO (.parquet, .jsonl, .csv or a folder), or hub:NAME (hub:aime24).",
        show_default=False,
    ),
]
ComparisonOut = Annotated[
    Path | None,
    path_option("DIR", "Where candidates and outcome go; a directory to go on with after an interruption."),
]
ComparedWeights = Annotated[Path | None, path_option("WEIGHTS", "The weights file that scores are from.")]
ComparedCalibration = Annotated[
    Path | None,
    path_option(
        "CACHE",
        "The activation cache of a calibration, for diagnostics and intervals; and for weights, without --weights.",
    ),
]
Candidates = Annotated[int, typer.Option("-n", metavar="N", help="Candidates for each problem.")]
Grader = Annotated[
    str | None,
    typer.Option(
        metavar="GRADER",
        help="exact, numeric, choice, math, or FILE.py:FUNCTION with a function (response, answer) -> bool of yours; "
        "by default what suits the answers.",
        show_default=False,
    ),
]
Extract = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="How answers are taken from responses: boxed, last_number, choice, line:PREFIX or pattern:RE; by default "
        "what suits the grader.",
        show_default=False,
    ),
]
Selectors = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Selectors to compare; by default all that can be applied.", show_default=False),
]
SelectorFile = Annotated[Path | None, path_option("FILE", "What `learned` chooses by: a selector.json of `fit`.")]
RecordedTopK = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="K", help="Neurons kept per token; by default those of the weights, or 2000.", show_default=False
    ),
]
RecordedRowTokens = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="W", help="Tokens per row; by default those of the weights, or 32.", show_default=False
    ),
]
CandidatesFile = Annotated[
    Path, typer.Argument(metavar="CANDIDATES", parser=_path, help="The candidates.parquet of a graded comparison.")
]
SelectorOut = Annotated[Path, path_option("FILE", "The selector.json to write.")]
SweptCache = Annotated[
    Path,
    typer.Argument(
        metavar="CACHE",
        parser=_path,
        help="An activation cache; one recorded with --row-tokens 1 and a large --top-k leaves most to sweep over.",
    ),
]
Over = Annotated[
    list[str],
    typer.Option(
        metavar="OPTION=V1,V2",
        help="Values of top_k, row_tokens, rho, min_run, credit, samples or first_cycle (in or out). May be given "
        "several times: one option is changed at a time, the others stay.",
    ),
]
SweptCandidates = Annotated[
    Path | None,
    path_option(
        "FILE", "Graded candidates to choose among: the candidates.parquet in the directory of `compare`, for accuracy."
    ),
]
SweepOut = Annotated[Path | None, path_option("DIR", "Write sweep.json and sweep.png to this directory.")]
BaseTopK = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="Where top_k stays; by default as recorded.", show_default=False),
]
BaseRowTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="W",
        help="Where row_tokens stays; by default as recorded, or 32 where rows of one token were.",
        show_default=False,
    ),
]
NoNoise = Annotated[
    bool,
    typer.Option(
        "--no-noise",
        help="Do not score candidates twice to see how much a score changes with the batch, for which an engine is "
        "started once more.",
    ),
]
AcceptOtherModel = Annotated[
    bool,
    typer.Option(
        "--accept-other-model",
        help="Take weights that another model of the same layers and widths gave, such as a fine-tune's base model.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what vLLM logs.")]
