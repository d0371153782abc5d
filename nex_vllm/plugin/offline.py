"""The vLLM names that driving an engine by hand takes: its options, its start, and its steps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from vllm import LLM
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.plugins import load_general_plugins
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser

__all__ = ["LLM", "ChatParams", "EngineArgs", "RequestOutputKind", "VLLMClientError", "parse_given_options"]


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
