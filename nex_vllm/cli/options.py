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


def path_option(metavar: str, help: str) -> Any:  # noqa: A002 - typer's own word
    """Declare a flag that takes a path."""
    return typer.Option(metavar=metavar, parser=_path, help=help, show_default=False)


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
ScoresOut = Annotated[Path, path_option("FILE", "The JSON lines file to write.")]
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
    path_option("DIR", "Keep weights, cache and candidates in this new directory; by default nothing is kept."),
]
Inspected = Annotated[
    Path, typer.Argument(metavar="PATH", parser=_path, help="A weights file, or the directory of a cache.")
]
Samples = Annotated[int, typer.Option(min=1, metavar="N", help="Responses for each prompt.")]
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
AcceptOtherModel = Annotated[
    bool,
    typer.Option(
        "--accept-other-model",
        help="Take weights that another model of the same layers and widths gave, such as a fine-tune's base model.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what vLLM logs.")]
