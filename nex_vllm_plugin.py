"""Entry point of the vLLM plugin: cheap to import, and without effect until NEX is asked for.

It stands beside the package, not in it, because importing ``nex_vllm`` makes ``vllm.SamplingParams`` accept the NEX
keywords, and a process that merely has the plugin installed must see plain vLLM. vLLM calls :func:`register` in every
one of its processes; it lays pass-through wrappers around ``EngineArgs`` and does nothing else. NEX is asked for by
``additional_config={"nex": {...}}`` or by ``--plugin nex`` / ``--nex-weights FILE``, which are folded into it.
"""

from __future__ import annotations

import argparse
import functools
import sys
from typing import Any

CONFIG_KEY = "nex"


def _fold_flags(args: argparse.Namespace) -> None:
    """Write the flags into ``args.additional_config``.

    Into the parsed arguments themselves, because vLLM hands them to further processes that see them before plugins
    are loaded there.
    """
    names = (
        "weights",
        "top_k",
        "row_tokens",
        "accept_other_model",
        "allow_lora",
        "extract",
        "deepconf_window",
        "selector_file",
        "part",
        "reasoning_end",
    )
    flags = {name: getattr(args, f"nex_{name}", None) for name in names}
    given = {name: value for name, value in flags.items() if value is not None}
    config = getattr(args, "additional_config", None) or {}
    if not isinstance(config, dict) or not (given or getattr(args, "nex_plugin", None) or CONFIG_KEY in config):
        return
    settings = config.get(CONFIG_KEY) or {}
    # On a command line an unusable setting ends in one sentence and exit status 2, not in a traceback.
    if not isinstance(settings, dict):
        sys.stderr.write(
            f'error: additional_config["{CONFIG_KEY}"] is {settings!r}, but must be a mapping of settings.\n'
        )
        raise SystemExit(2)
    args.additional_config = {**config, CONFIG_KEY: {**settings, **given, "from_command_line": True}}


def _accept_flags(engine_args: Any) -> None:
    """Add the NEX flags to every parser of engine arguments, and fold their values into ``additional_config``."""
    plain_add_cli_args = engine_args.add_cli_args
    plain_from_cli_args = engine_args.from_cli_args.__func__

    @functools.wraps(plain_add_cli_args)
    def add_cli_args(parser: Any) -> Any:
        parser = plain_add_cli_args(parser)
        group = parser.add_argument_group("NEX", "Label-free best-of-n by the model's own neurons (nex-vllm).")
        group.add_argument("--plugin", dest="nex_plugin", choices=["nex"], help="Switch on NEX.")
        group.add_argument("--nex-weights", metavar="FILE", help="Neuron weights from `nex-vllm calibrate`.")
        group.add_argument("--nex-top-k", type=int, metavar="K", help="Neurons kept per token (default: the weights').")
        group.add_argument("--nex-row-tokens", type=int, metavar="W", help="Tokens per row (default: the weights').")
        group.add_argument(
            "--nex-extract",
            metavar="KIND",
            help="How answers are found, for majority votes: boxed, last_number, choice, line:PREFIX or pattern:RE.",
        )
        group.add_argument(
            "--nex-deepconf-window", type=int, metavar="W", help="Tokens of a group of DeepConf (default: 2048)."
        )
        group.add_argument(
            "--nex-selector", dest="nex_selector_file", metavar="FILE", help="Learned selector from `nex-vllm fit`."
        )
        group.add_argument(
            "--nex-part",
            choices=["all", "reasoning"],
            help="Which part of an answer counts: all, or until its thinking ends (default: the weights').",
        )
        group.add_argument(
            "--nex-reasoning-end",
            metavar="TEXT",
            help="The text that ends the thinking (default: the weights', or the reasoning parser's).",
        )
        # None where they are not given, so that what stands in --additional-config counts.
        group.add_argument(
            "--nex-accept-other-model",
            action="store_true",
            default=None,
            help="Take weights of another model of the same layers and widths, e.g. the base model's.",
        )
        group.add_argument(
            "--nex-allow-lora",
            action="store_true",
            default=None,
            help="Score requests with a LoRA adapter with the weights of the model without it.",
        )
        return parser

    @functools.wraps(plain_from_cli_args)
    def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
        _fold_flags(args)
        return plain_from_cli_args(cls, args)

    engine_args.add_cli_args = staticmethod(add_cli_args)
    engine_args.from_cli_args = classmethod(from_cli_args)


def _switch_on_where_asked(engine_args: Any) -> None:
    plain_create_engine_config = engine_args.create_engine_config

    @functools.wraps(plain_create_engine_config)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        # vLLM allows any object with a hash here; NEX is asked for in a mapping.
        if not isinstance(self.additional_config, dict) or CONFIG_KEY not in self.additional_config:
            return plain_create_engine_config(self, *args, **kwargs)
        from nex_vllm.plugin.activation import create_engine_config_with_nex

        return create_engine_config_with_nex(self, functools.partial(plain_create_engine_config, self, *args, **kwargs))

    create_engine_config.nex_wrapper = True  # type: ignore[attr-defined]
    engine_args.create_engine_config = create_engine_config


def register() -> None:
    """Lay the wrappers; a second call in the same process changes nothing."""
    from vllm.engine.arg_utils import EngineArgs

    if getattr(EngineArgs.create_engine_config, "nex_wrapper", False):
        return
    _switch_on_where_asked(EngineArgs)
    _accept_flags(EngineArgs)
