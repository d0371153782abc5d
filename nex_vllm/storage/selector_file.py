"""The file of a learned selector: plain JSON that a person can read (format nex-selector/1)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.rows import MAX_ROW_TOKENS
from nex_vllm.algorithm.signals import SIGNALS
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import check_writable_output, write_atomically
from nex_vllm.storage.files import StrPath, abbreviate, check_format, convert, read_json_object

SELECTOR_FORMAT = "nex-selector/1"

_WHAT = "the file of a learned selector"
_MAX_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class SelectorFile:
    """A learned selector, and what its signals were measured with.

    Attributes:
        signals: names of the signals that it adds up.
        coefficients: by signal, what one standard deviation within a request is worth.
        row_tokens: tokens per row.
        deepconf_window: tokens of a group of DeepConf.
        extract: how answers were found; None where no signal reads them.
        top_k: neurons kept per token; None where no signal counts them.
        part: which part of a response counted; files of earlier versions lack it.
        reasoning_end: the text that ends it; empty where everything counted.
        weights_digest: SHA-256 of the neuron weights behind the scores; None where no signal reads them, and where
            that is not known.
        trained_on: what it was learned from, for people.
        fitted_to: ids of the problems that it was fitted to; files of earlier versions do not say it.
        cross_validated: how well it chose among problems that it was not learned from, for people.
    """

    signals: list[str]
    coefficients: dict[str, float]
    row_tokens: Annotated[int, Meta(ge=1, le=MAX_ROW_TOKENS)]
    deepconf_window: Annotated[int, Meta(ge=1, lt=1 << 31)]
    extract: str | None = None
    top_k: Annotated[int, Meta(ge=1, le=1 << 32)] | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    cross_validated: dict[str, Any] = field(default_factory=dict)
    part: Literal["all", "reasoning"] = "all"
    reasoning_end: str = ""
    weights_digest: str | None = None
    fitted_to: list[str] = field(default_factory=list)

    @property
    def selector(self) -> LearnedSelector:
        """The selector itself."""
        return LearnedSelector({name: self.coefficients[name] for name in self.signals})


def save_selector(path: StrPath, file: SelectorFile, force: bool = False) -> None:
    """Write the file of a learned selector, whole or not at all.

    Raises `InputError` where ``path`` cannot be written, exists without ``force``, or the content breaks the format,
    and `NexError` where writing failed.
    """
    check_writable_output(path, force)
    content = {"format": SELECTOR_FORMAT, **asdict(file)}
    _check(convert(content, SelectorFile, f"the selector for {path}"), f"the selector for {path}")
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def load_selector(path: StrPath) -> SelectorFile:
    """Read the file of a learned selector.

    Raises `InputError`, which names the file, where it is missing, foreign, of a later version, names a signal that
    there is not, or has a coefficient that is no finite number.
    """
    content = read_json_object(path, _MAX_BYTES, _WHAT)
    check_format(content.get("format"), SELECTOR_FORMAT, path, _WHAT)
    file = convert(content, SelectorFile, str(path))
    _check(file, str(path))
    return file


def check_selector_fits(  # noqa: PLR0913 - one argument per thing that must fit
    file: SelectorFile,
    *,
    extract: str | None,
    deepconf_window: int,
    row_tokens: int,
    top_k: int,
    has_weights: bool,
    source: StrPath,
    part: str = "all",
    reasoning_end: str = "",
    weights_digest: str | None = None,
    weights_flag: str = "--nex-weights FILE (setting weights)",
) -> None:
    """Refuse a learned selector whose signals the engine measures otherwise; both values are named.

    What none of its signals depends on may differ. ``weights_digest`` is that of the engine's neuron weights, None
    where it is not known, and ``weights_flag`` how the caller's user gives weights.

    Raises `InputError` where something that they do depend on differs, or where one needs weights and there are none.
    """
    needs = file.selector.needs
    if "score" in needs and not has_weights:
        raise InputError(
            f"{source} chooses by {_first_with(file, 'score')} among others, which needs neuron weights, but there "
            f"are none; give {weights_flag}, or fit a selector without it"
        )
    if "score" in needs and None not in {file.weights_digest, weights_digest} and file.weights_digest != weights_digest:
        raise InputError(
            f"{source} was fitted to scores by the neuron weights with digest {file.weights_digest}, but those here "
            f"have {weights_digest}; give the weights that it was fitted with, or fit it again"
        )
    for name, fitted, served, matters in (
        ("extract", file.extract, extract, "answer" in needs),
        ("top_k", file.top_k, top_k, "keys" in needs and file.top_k is not None),
        ("row_tokens", file.row_tokens, row_tokens, "top20_entropy" in file.signals),
        (
            "deepconf_window",
            file.deepconf_window,
            deepconf_window,
            any(signal.startswith("deepconf") for signal in file.signals),
        ),
        ("part", file.part, part, bool(needs - {"answer"})),  # answers and lengths are those of the whole response
        ("reasoning_end", file.reasoning_end, reasoning_end, bool(needs - {"answer"})),
    ):
        if matters and fitted != served:
            raise InputError(
                f"{source} was fitted to signals measured with {name} {abbreviate(fitted)}, but the engine has "
                f"{abbreviate(served)}; set {name} to that, or fit it again"
            )


def _first_with(file: SelectorFile, need: str) -> str:
    return next(name for name in file.signals if need in SIGNALS[name].needs)


def _check(file: SelectorFile, where: str) -> None:
    """Raise `InputError` where the content breaks the format; ``where`` starts the message."""
    unknown = [name for name in (*file.signals, *file.coefficients) if name not in SIGNALS]
    if unknown:
        raise InputError(f"{where} names the signal {abbreviate(unknown[0])}, expected of {', '.join(SIGNALS)}")
    if not file.signals or len(set(file.signals)) != len(file.signals) or set(file.signals) != set(file.coefficients):
        raise InputError(
            f"{where} has the signals {abbreviate(file.signals)} and coefficients of "
            f"{abbreviate(list(file.coefficients))}, expected at least one signal and a coefficient for each"
        )
    for name, coefficient in file.coefficients.items():
        if not math.isfinite(coefficient):
            raise InputError(f"{where} has the coefficient {coefficient} for {name}, expected a finite number")
    if file.extract is None and "answer" in file.selector.needs:
        raise InputError(
            f"{where} chooses by {_first_with(file, 'answer')} but does not say how answers were found; expected "
            "`extract`"
        )
