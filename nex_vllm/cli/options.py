"""The flags of the command line, each described once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_SAMPLING, _LEARNING = "Sampling", "Learning"


class CreditName(StrEnum):
    """Which neurons of an exploring run are credited."""

    INTRODUCED = "introduced"
    ALL_ACTIVE = "all_active"


MODEL_HELP = "A model's folder, or its name on the Hugging Face hub."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
OptionalModel = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP, show_default=False)]
Prompts = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="JSON lines with `prompt` (text) or `messages` (a chat), and optionally a unique `id`."
    ),
]
OptionalPrompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSON lines with `prompt` (text) or `messages` (a chat), and optionally a unique `id`.",
        show_default=False,
    ),
]
WeightsOut = Annotated[Path, typer.Option(metavar="WEIGHTS", help="The weights file to write.")]
Cache = Annotated[
    Path,
    typer.Option(metavar="DIR", help="The activation cache: a new directory, or one to go on with."),
]
OptionalCache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Record into this activation cache, so that a run can be continued and learned from again; the weights "
        "come from all that is in it.",
        show_default=False,
    ),
]
FromCache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Learn from this activation cache; no model is needed.", show_default=False),
]
Samples = Annotated[int, typer.Option(min=1, metavar="N", help="Responses for each prompt.")]
TopK = Annotated[int, typer.Option(min=1, metavar="K", help="Neurons kept per token, over all layers together.")]
RowTokens = Annotated[int, typer.Option(min=1, metavar="W", help="Response tokens per row.")]
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
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what vLLM logs.")]
