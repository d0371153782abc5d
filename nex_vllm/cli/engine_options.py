"""vLLM's own engine options, which a command takes after ``--``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from nex_vllm.cli.report import describe_error
from nex_vllm.errors import InputError

HELP = """\
\b
Everything after -- is an option of vLLM's engine, as `vllm serve` takes it; `vllm serve --help=all`
lists them. Example:
  nex-vllm {} -- --tensor-parallel-size 4 --gpu-memory-utilization 0.9"""

_SAMPLING = "the command asks for what it records itself"
_ONE_ENGINE = "the command drives one engine on this machine; use --tensor-parallel-size for several GPUs"
_CHOSEN_BY_NEX = "NEX brings its own"
_GENERATES = "the command needs a model that generates text"

REFUSED: Mapping[str, str] = {
    "model": "give the model as MODEL, before --",
    "additional_config": "NEX is set by the command's own flags, before --",
    "seed": "every response is sampled with a seed of its own, which --seed before -- sets",
    "runner": _GENERATES,
    "convert": _GENERATES,
    "pooler_config": _GENERATES,
    "skip_tokenizer_init": "prompts must be split into tokens",
    "logprobs_mode": _SAMPLING,
    "max_logprobs": _SAMPLING,
    "worker_cls": _CHOSEN_BY_NEX,
    "scheduler_cls": _CHOSEN_BY_NEX,
    "enable_dbo": "NEX does not record under dual-batch overlap",
    "ubatch_size": "NEX does not record under micro-batches",
    "nnodes": _ONE_ENGINE,
    "node_rank": _ONE_ENGINE,
}
"""Engine options that would break recording, or have no effect on it, with the reason; by vLLM's field name."""

REFUSED_BY_SCORE: Mapping[str, str] = {
    **REFUSED,
    "max_num_batched_tokens": "the batch is as large as the record of all its tokens allows",
    "enable_chunked_prefill": "long responses are read in several steps",
}


def without_options(words: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """Return engine options as they were given, without those of these fields and their values."""
    kept: list[str] = []
    is_dropped = False
    for word in words:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            is_dropped = name.removeprefix("no_") in names
        if not is_dropped:
            kept.append(word)
    return tuple(kept)


class Command(TyperCommand):
    """A command whose usage line shows a required argument by its bare name, as is usual."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Take off the braces that typer puts around it."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class EngineCommand(Command):
    """A command that starts an engine; what stands after ``--`` is kept for vLLM's own parser."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before ``--``."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[__name__] = tuple(args[end + 1 :])
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Show in the usage line that there can be more."""
        return [*super().collect_usage_pieces(ctx), "[-- ENGINE OPTIONS]"]


def words_after_dashes(context: typer.Context) -> tuple[str, ...]:
    """Return what stood after ``--``, as it was given; nothing for a command that takes nothing there."""
    words: tuple[str, ...] = context.meta.get(__name__, ())
    return words


def parse_engine_options(words: Sequence[str], refused: Mapping[str, str] = REFUSED) -> dict[str, Any]:
    """Return the engine options that were given, by vLLM's field name; vLLM is imported only where there are any.

    Raises:
        InputError: vLLM has no such option or does not take its value, or it is one of ``refused``.
    """
    if not words:
        return {}
    from nex_vllm.plugin.offline import parse_given_options

    try:
        given = parse_given_options(words)
    except Exception as error:  # argparse's complaint, or whatever a --config file provokes
        raise InputError(
            f"vLLM does not take the engine options after --: {describe_error(error, with_type=False)}; "
            "`vllm serve --help=all` lists what it takes"
        ) from None
    for name, value in given.items():
        problem = refused.get(name)
        if name.startswith("nex_"):
            problem = "NEX is set by the command's own flags, before --"
        elif name.startswith("data_parallel"):
            problem = _ONE_ENGINE
        elif name == "load_format" and value == "dummy":
            problem = "with value dummy the model's weights would be random numbers"
        if problem is not None:
            shown = "plugin" if name == "nex_plugin" else name.replace("_", "-")
            raise InputError(f"the engine option --{shown} cannot be given here: {problem}; leave it out")
    return given
