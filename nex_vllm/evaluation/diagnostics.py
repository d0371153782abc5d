"""What a calibration says about itself without labels (specification, section 8), and when that is a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.summary import rank_correlation
from nex_vllm.errors import InputError
from nex_vllm.evaluation.evidence import Calibration
from nex_vllm.storage import Diagnostics

__all__ = ["MEANINGS", "Diagnostics", "diagnose", "measure_noise", "same_choice", "with_noise"]

MEANINGS: Mapping[str, str] = {
    "score_length_correlation": "within a prompt, rank correlation of score and number of tokens (those that count): "
    "above 0, longer responses score higher, which the paper does not expect",
    "split_half_agreement": "how often the weights of two halves of the prompts choose the same response, a tie for "
    "the highest score being a draw",
    "chance_agreement": "how often two random choices would be the same",
    "share_under_two_cycles": "share of responses with fewer than two cycles, which give no evidence",
    "first_cycle_share": "share of the positive evidence that comes from cycles that begin with a response, where "
    "every neuron is new",
    "late_bad_mass": "share of the bad mass in the last tenth of the responses: much of it means that endings decide",
    "score_spread": "standard deviation of the scores within a prompt: what a choice has to go by",
    "score_noise": "standard deviation of what a score changes by when the same response is scored in another batch "
    "(`nex-vllm compare` measures it)",
}
"""What each diagnostic says, in the order in which they are shown."""

MOST_LENGTH_CORRELATION = 0.1
MOST_UNDER_TWO_CYCLES = 0.5
MOST_LATE_BAD_MASS = 0.5
MOST_NOISE = 0.1
"""Of the spread."""

_ADVICE = "try the choice on a few labelled prompts (`nex-vllm compare`) before you rely on it"


def diagnose(calibration: Calibration) -> Diagnostics:
    """Return the diagnostics of a calibration; None, and a sentence, for what it does not tell.

    Every response is scored across: the prompts are cut into two halves, and each is scored with the weights of the
    other, so that no response is judged by what it taught. Nothing here ever changes a weight or a choice.

    Raises:
        InputError: the calibration has no response.
    """
    if not len(calibration.prompt):
        raise InputError("there is no response to diagnose; record some first")
    untold: list[str] = []
    first_cycle_share = None
    if calibration.effective_mass > 0.0:
        first_cycle_share = calibration.first_cycle_mass / calibration.effective_mass
    else:
        untold.append("first_cycle_share cannot be told: no cycle gives positive evidence")
    found = Diagnostics(
        num_prompts=len(calibration.evidence.prompts),
        num_responses=len(calibration.prompt),
        samples=max(map(len, calibration.candidates)),
        num_too_short=calibration.num_too_short,
        share_under_two_cycles=float((calibration.num_cycles < 2).mean()),
        first_cycle_share=first_cycle_share,
    )
    problem, across = _score_across(calibration)
    several = [candidates for candidates in calibration.candidates if len(candidates) > 1]
    if across is None:
        untold.append(
            f"score_length_correlation, split_half_agreement, late_bad_mass and score_spread cannot be told: {problem}"
        )
    else:
        found = replace(found, late_bad_mass=across.late_bad / across.bad if across.bad > 0.0 else None)
        if found.late_bad_mass is None:
            untold.append("late_bad_mass cannot be told: no activation is on a neuron with a negative weight")
    if across is not None and several:
        found = replace(
            found,
            score_length_correlation=_length_correlation(across.scores, calibration.num_tokens, several),
            split_half_agreement=float(
                np.mean([same_choice(*(scores[candidates] for scores in across.by_half)) for candidates in several])
            ),
            chance_agreement=float(np.mean([1 / len(candidates) for candidates in several])),
            score_spread=float(np.mean([_spread(across.scores[candidates]) for candidates in several])),
        )
        if found.score_length_correlation is None:
            untold.append(
                "score_length_correlation cannot be told: in no prompt do both score and number of tokens differ"
            )
    elif across is not None:
        untold.append(
            "score_length_correlation, split_half_agreement and score_spread cannot be told: no prompt has two "
            "responses; record several of each (--samples 4)"
        )
    return replace(found, warnings=(*untold, *_passed_thresholds(found)))


def same_choice(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return how often two scorings of the same candidates choose the same one, each by a draw among its highest.

    So scorings that tell nothing agree no more than by chance, as they would not by a rule such as the lowest index.

    Args:
        one: scores, float64 [n]; NaN, where there is none, loses, and where nobody has one all are drawn among.
        other: the same of the other scoring.
    """
    first, second = _highest(one), _highest(other)
    return int((first & second).sum()) / (int(first.sum()) * int(second.sum()))


def _highest(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which candidates share the highest score, bool [n]."""
    known = scores[~np.isnan(scores)]
    return scores == known.max() if len(known) else np.ones(len(scores), dtype=np.bool_)


def measure_noise(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Return the standard deviation of the differences between two scorings of the same responses (score_noise).

    Responses that lack a score in one of them are left out; None where fewer than two remain.

    Raises:
        InputError: they are not about equally many responses.
    """
    if len(first) != len(second):
        raise InputError(f"there are {len(first)} scores and {len(second)}, expected two of the same responses")
    differences = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return float(np.std(differences)) if len(differences) > 1 else None


def with_noise(diagnostics: Diagnostics, noise: float | None, spread: float | None = None) -> Diagnostics:
    """Return the diagnostics with the noise that was measured, and its warning where it is due.

    Args:
        diagnostics: of the calibration; what they said of an earlier noise is replaced.
        noise: standard deviation of the differences; None where it was not measured.
        spread: what it is set against where the calibration tells no spread.
    """
    warnings = [warning for warning in diagnostics.warnings if not warning.startswith("score_noise is ")]
    spread = spread if diagnostics.score_spread is None else diagnostics.score_spread
    if noise is not None and spread is not None and noise > MOST_NOISE * spread:
        warnings.append(
            f"score_noise is {noise:.2g}, more than a tenth of the spread within a prompt ({spread:.2g}): the same "
            "response scores differently in another batch, so close choices are left to chance"
        )
    return replace(diagnostics, score_noise=noise, warnings=tuple(warnings))


@dataclass(frozen=True, slots=True, eq=False)
class _Across:
    """Responses scored with the weights of each half, and with those of the other one.

    ``by_half``: float64 [R] for each half's weights; ``scores``: float64 [R], across; ``bad``, ``late_bad``: bad mass
    (across) of all responses, and of the last tenth of each.
    """

    by_half: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    scores: npt.NDArray[np.float64]
    bad: float
    late_bad: float


def _score_across(calibration: Calibration) -> tuple[str, _Across | None]:
    """Return the scores, or why there are none."""
    if len(calibration.evidence.prompts) < 2:
        return "there is one prompt, which cannot be cut into two halves; record more prompts", None
    half = calibration.halves()
    one, other = calibration.evidence.weights(half), calibration.evidence.weights(~half)
    if not len(one.keys) or not len(other.keys):
        return "one half of the prompts gives no evidence; record more prompts, or longer responses", None
    in_one = half[calibration.prompt]
    bad = []
    for sums in (calibration.sums, calibration.late_sums):
        by_weights = [total - pos for pos, total in (sums.masses(one), sums.masses(other))]
        bad.append(float(np.where(in_one, by_weights[1], by_weights[0]).sum()))
    by_half = calibration.sums.scores(one), calibration.sums.scores(other)
    return "", _Across(by_half, np.where(in_one, by_half[1], by_half[0]), *bad)


def _spread(scores: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation, which is exactly 0 where the scores are equal: computed, it may not be."""
    return 0.0 if scores.min() == scores.max() else float(scores.std())


def _length_correlation(
    scores: npt.NDArray[np.float64], num_tokens: npt.NDArray[np.int64], several: list[npt.NDArray[np.int64]]
) -> float | None:
    correlations = [rank_correlation(scores[each], num_tokens[each].astype(np.float64)) for each in several]
    told = [each for each in correlations if each is not None]
    return float(np.mean(told)) if told else None


def _passed_thresholds(found: Diagnostics) -> list[str]:
    """Return a sentence for each diagnostic that is past its threshold."""
    warnings = []
    correlation, agreement, chance = (
        found.score_length_correlation,
        found.split_half_agreement,
        found.chance_agreement,
    )
    if correlation is not None and correlation > MOST_LENGTH_CORRELATION:
        warnings.append(
            f"score_length_correlation is {correlation:+.2f}, above {MOST_LENGTH_CORRELATION:+.1f}: longer responses "
            f"to a prompt score higher, which went with choosing worse than at random where right answers were short; "
            f"{_ADVICE}"
        )
    if agreement is not None and chance is not None and agreement < (1 + chance) / 2:
        warnings.append(
            f"split_half_agreement is {agreement:.2f}, less than half-way from chance ({chance:.2f}) to 1: another "
            "calibration would choose differently; record more prompts, or more responses to each"
        )
    under_two, late, spread = found.share_under_two_cycles, found.late_bad_mass, found.score_spread
    if under_two is not None and under_two > MOST_UNDER_TWO_CYCLES:
        too_short = f" ({found.num_too_short} are too short to segment)" if found.num_too_short else ""
        warnings.append(
            f"share_under_two_cycles is {under_two:.2f}, above {MOST_UNDER_TWO_CYCLES}: most responses{too_short} give "
            "no evidence; sample longer responses, or record with a smaller --row-tokens"
        )
    if late is not None and late > MOST_LATE_BAD_MASS:
        warnings.append(
            f"late_bad_mass is {late:.2f}, above {MOST_LATE_BAD_MASS}: what a response ends with, not how it got "
            f"there, decides its score; {_ADVICE}"
        )
    if spread == 0.0:
        warnings.append("score_spread is 0: all responses to a prompt have the same score, so there is no choice")
    return warnings
