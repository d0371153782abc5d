"""The outcome of a comparison, ``comparison.json`` (format nex-comparison/1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.diagnostics import Diagnostics
from nex_vllm.storage.files import StrPath, check_format, decode_object, read_bounded

COMPARISON_FORMAT = "nex-comparison/1"
TABLE_NAME, OUTCOME_NAME, CACHE_NAME = "candidates.parquet", "comparison.json", "cache"
WEIGHTS_NAME = "weights.safetensors"
"""What a comparison's directory has: candidates, outcome, their recorded rows, and the weights that it scored with."""

_WHAT = "the outcome of a comparison (comparison.json)"


@dataclass(frozen=True, slots=True)
class SelectorResult:
    """How one selector did. All but ``mean_tokens`` are None where nothing was graded, intervals for one problem too.

    Attributes:
        accuracy: share of graded problems whose choice is right; of ``random`` the mean over each problem's candidates.
        gain: accuracy minus that of ``random``, on the same candidates.
        gain_low: lower end of its interval of 95 %, over problems.
        gain_high: upper end.
        wins: problems in which the choice is right and some candidate is wrong.
        ties: problems whose candidates are all right or all wrong; of ``random`` all problems.
        losses: problems in which the choice is wrong and some candidate is right.
        mean_tokens: mean length of the choices, over all problems.
        gain_low_calibration: of ``nex``, lower end over problems and calibrations; None without a calibration cache.
        gain_high_calibration: upper end.
    """

    accuracy: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    mean_tokens: float | None = None
    gain_low_calibration: float | None = None
    gain_high_calibration: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its interval of 95 % over problems; None where it is not defined."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class NexResult:
    """How often the candidate with the best score is right, a random one, and the one with the worst (figure 7).

    Attributes:
        best: accuracy of the highest score.
        random: accuracy of a random choice.
        worst: accuracy of the lowest score.
        correlation: within problems, of the ranks of score and correctness.
        length_correlation: within problems, of the ranks of score and number of tokens.
        partial_correlation: of the ranks of score and correctness, that of the number of tokens held fixed.
        like_length: of pairs of a right and a wrong candidate whose lengths differ by a fifth at most, the share in
            which the right one has the higher score; chance is 0.5.
        like_length_pairs: how many pairs these are.
        all_pairs: the same share of all pairs of a right and a wrong candidate.
    """

    best: float
    random: float
    worst: float
    correlation: Measured = Measured()
    length_correlation: Measured = Measured()
    partial_correlation: Measured = Measured()
    like_length: Measured = Measured()
    like_length_pairs: int = 0
    all_pairs: Measured = Measured()


@dataclass(frozen=True, slots=True)
class Margin:
    """By how much a selector's choice leads, in units of its signal.

    Attributes:
        median: over problems, of the best value minus the second best.
        spread: mean over problems of the standard deviation of the values.
        ties: share of problems in which the two are equal, so that the candidate's place decides.
    """

    median: float
    spread: float
    ties: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often selectors choose the same candidate.

    Attributes:
        names: [S] of the selectors.
        shares: [S][S] of problems, 1 on the diagonal.
        chance: mean of 1/n: what two random choices would give.
    """

    names: list[str]
    shares: list[list[float]]
    chance: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        num_problems: problems.
        num_graded: problems whose candidates are all graded.
        n: candidates of a problem; the largest number where they differ.
        selectors: by name.
        nex: best, random and worst; None without scores or without grades.
        agreement: of the selectors that choose by more than chance or place.
        margins: by selector.
        diagnostics: of the calibration behind the scores; None where nothing is known of it.
        left_out: by selector that could not be applied, why.
        notes: sentences about what was counted: failed, ungraded, unscored candidates, ones too short to segment.
        made_with: how the candidates came about, as in the table of candidates.
    """

    num_problems: int
    num_graded: int
    n: int
    selectors: dict[str, SelectorResult]
    nex: NexResult | None = None
    agreement: Agreement | None = None
    margins: dict[str, Margin] = field(default_factory=dict)
    diagnostics: Diagnostics | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    made_with: dict[str, Any] = field(default_factory=dict)


def write_comparison(path: StrPath, comparison: Comparison) -> None:
    """Write the outcome, whole or not at all; an older file of that name is replaced."""
    entries = {"format": COMPARISON_FORMAT, **asdict(comparison)}
    for result in entries["selectors"].values():
        # Only of a comparison that had a calibration cache.
        if result["gain_low_calibration"] is None:
            del result["gain_low_calibration"], result["gain_high_calibration"]
    write_atomically(path, msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")


def read_comparison(path: StrPath) -> Comparison:
    """Read an outcome; entries that the format does not know are ignored. Raises `InputError` where it is none."""
    data = read_bounded(path, 256 << 20, _WHAT)
    check_format(decode_object(data, str(path), dict[str, Any]).get("format"), COMPARISON_FORMAT, path, _WHAT)
    return decode_object(data, str(path), Comparison)
