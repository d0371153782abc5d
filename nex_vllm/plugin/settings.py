"""The settings under ``additional_config["nex"]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nex_vllm.algorithm.signals import DEFAULT_DEEPCONF_WINDOW
from nex_vllm.choosing.answers import parse_extraction
from nex_vllm.choosing.offer import EngineOffer
from nex_vllm.choosing.part import ALL, PARTS
from nex_vllm.errors import InputError

CONFIG_KEY = "nex"

_KNOWN = (
    "weights",
    "top_k",
    "row_tokens",
    "teacher_forced",
    "allow_lora",
    "accept_other_model",
    "extract",
    "deepconf_window",
    "selector_file",
    "part",
    "reasoning_end",
)
# Written by the plugin, not by users: set on a command line, and by the activation once the file has been read.
_INTERNAL = ("from_command_line", "resolved", "logprobs_mode", "coefficients", "reasoning_end_token")


@dataclass(frozen=True, slots=True)
class NexSettings:
    """What NEX was told about itself.

    Attributes:
        weights: path of a weights file, None to record only.
        top_k: neurons kept per token over all layers, None to take it from the weights file.
        row_tokens: tokens per row, None to take it from the weights file.
        teacher_forced: the record has room for every token of a batch, so that the positions of a given response
            can be recorded in a prefill (`nex-vllm score`).
        allow_lora: requests with a LoRA adapter are scored with the weights of the model without it.
        accept_other_model: take weights that were calibrated on another model of the same layers and widths.
        extract: how answers are found in responses (:func:`parse_extraction`), None for not at all, or as the learned
            selector's file says.
        deepconf_window: tokens of a group of DeepConf, None to take it from that file.
        selector_file: path of a learned selector's file, None for none.
        part: which part of a response counts, ``all`` or ``reasoning``; None to take it from the weights file.
        reasoning_end: the text that ends the reasoning; None to take it from that file or from vLLM's reasoning parser.
        from_command_line: unusable settings end in one sentence on stderr and exit status 2.
    """

    weights: str | None = None
    top_k: int | None = None
    row_tokens: int | None = None
    teacher_forced: bool = False
    allow_lora: bool = False
    accept_other_model: bool = False
    extract: str | None = None
    deepconf_window: int | None = None
    selector_file: str | None = None
    part: str | None = None
    reasoning_end: str | None = None
    from_command_line: bool = False

    @classmethod
    def from_config(cls, config: Any) -> NexSettings:
        """Read and check the settings.

        Raises:
            InputError: for anything but a mapping, an unknown key (the known ones are listed) or a wrong value.
        """
        if not isinstance(config, Mapping):
            raise InputError(f'additional_config["{CONFIG_KEY}"] is {config!r}, but must be a mapping of settings.')
        unknown = sorted(str(key) for key in config if key not in _KNOWN + _INTERNAL)
        if unknown:
            raise InputError(
                f'Unknown setting {unknown[0]!r} in additional_config["{CONFIG_KEY}"]; known are {", ".join(_KNOWN)}.'
            )
        return cls(
            weights=_path(config.get("weights")),
            top_k=_positive("top_k", config.get("top_k")),
            row_tokens=_positive("row_tokens", config.get("row_tokens")),
            teacher_forced=_flag("teacher_forced", config.get("teacher_forced", False)),
            allow_lora=_flag("allow_lora", config.get("allow_lora", False)),
            accept_other_model=_flag("accept_other_model", config.get("accept_other_model", False)),
            extract=_extract(config.get("extract")),
            deepconf_window=_positive("deepconf_window", config.get("deepconf_window")),
            selector_file=_path(config.get("selector_file")),
            part=_part(config.get("part")),
            reasoning_end=_reasoning_end(config.get("reasoning_end")),
            from_command_line=bool(config.get("from_command_line", False)),
        )


def _path(value: Any) -> str | None:
    return None if value is None else str(value)


def _extract(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"The NEX setting extract is {value!r}, but must be a string such as 'boxed'.")
    return str(parse_extraction(value))


def _part(value: Any) -> str | None:
    if value is not None and value not in PARTS:
        raise InputError(f"The NEX setting part is {value!r}, but must be {' or '.join(PARTS)}.")
    return None if value is None else str(value)


def _reasoning_end(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise InputError(f"The NEX setting reasoning_end is {value!r}, but must be a text such as '</think>'.")
    return value


def _positive(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"The NEX setting {name} is {value!r}, but must be a whole number of at least 1.")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"The NEX setting {name} is {value!r}, but must be true or false.")
    return value


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """The settings of an engine that NEX is on in: nothing left open, and the weights fit the model.

    Attributes:
        weights: absolute path of the weights file, None to record only.
        top_k: neurons kept per token.
        row_tokens: tokens per row.
        teacher_forced: see :class:`NexSettings`, as for the next two.
        allow_lora: see there.
        accept_other_model: see there.
        logprobs_mode: vLLM's own setting.
        extract: how answers are found in responses, None for not at all.
        deepconf_window: tokens of a group of DeepConf.
        selector_file: absolute path of a learned selector's file, None for none.
        coefficients: the learned selector's, by signal, None without one.
        part: which part of a response counts.
        reasoning_end: the text that ends the reasoning, None where everything counts.
        reasoning_end_token: the one token that spells it always, None where others may.
    """

    weights: str | None
    top_k: int
    row_tokens: int
    teacher_forced: bool
    allow_lora: bool
    accept_other_model: bool
    logprobs_mode: str
    extract: str | None = None
    deepconf_window: int = DEFAULT_DEEPCONF_WINDOW
    selector_file: str | None = None
    coefficients: dict[str, float] | None = None
    part: str = ALL
    reasoning_end: str | None = None
    reasoning_end_token: int | None = None

    @property
    def offer(self) -> EngineOffer:
        """What candidates can be chosen by."""
        return EngineOffer(
            row_tokens=self.row_tokens,
            has_weights=self.weights is not None,
            extract=self.extract,
            deepconf_window=self.deepconf_window,
            coefficients=self.coefficients,
            reasoning_end=self.reasoning_end,
            reasoning_end_token=self.reasoning_end_token,
        )

    def to_config(self) -> dict[str, Any]:
        """Return what stands under ``additional_config["nex"]`` of an engine that NEX is on in."""
        return {**asdict(self), "resolved": True}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ResolvedSettings:
        """Undo :meth:`to_config`."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})


def resolved_settings(vllm_config: Any) -> ResolvedSettings:
    """Return the settings of an engine that NEX is on in."""
    return ResolvedSettings.from_config(vllm_config.additional_config[CONFIG_KEY])


def is_active(vllm_config: Any) -> bool:
    """Whether NEX was switched on in the engine of this configuration."""
    config = vllm_config.additional_config
    return isinstance(config, dict) and bool((config.get(CONFIG_KEY) or {}).get("resolved"))
