"""The vLLM names that driving an engine by hand takes: its options, its start, and its steps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vllm import LLM
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.plugins import load_general_plugins
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser

from nex_vllm.choosing.part import REASONING
from nex_vllm.plugin.settings import CONFIG_KEY, resolved_settings

__all__ = [
    "LLM",
    "ChatParams",
    "EngineArgs",
    "RequestOutputKind",
    "VLLMClientError",
    "parse_given_options",
    "parsers_reasoning_end",
]


class _EngineOptionParser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it ends the process."""
        raise ValueError(message)


def parse_given_options(words: Sequence[str]) -> dict[str, Any]:
    """Parse options of vLLM's engine; only those that are given are returned, by the name of their field.

    Raises:
        ValueError: with argparse's words.
    """
    load_general_plugins()  # some add values, such as a quantisation
    parser = EngineArgs.add_cli_args(_EngineOptionParser(prog="nex-vllm", usage="", add_help=False))
    for action in parser._actions:
        # argparse has no public way to leave out defaults that the arguments state themselves.
        action.default = argparse.SUPPRESS
    try:
        given: dict[str, Any] = vars(parser.parse_args(list(words)))
    except IndexError:  # `--hf-overrides.x` at the end: vLLM looks for the value before argparse does
        raise ValueError(f"argument {words[-1]}: expected one argument") from None
    return given


def parsers_reasoning_end(model: str, options: Mapping[str, Any]) -> str:
    """Return the text that ends a model's reasoning, as the reasoning parser among the engine's options has it.

    Raises:
        InputError: it has none, or NEX cannot work with this model or these options.
        Exception: whatever vLLM raises for options that it cannot use.
    """
    load_general_plugins()
    asked = {CONFIG_KEY: {"part": REASONING}}
    config = EngineArgs(model=model, additional_config=asked, **options).create_engine_config()
    return resolved_settings(config).reasoning_end or ""
