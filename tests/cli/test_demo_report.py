"""The demo's one sentence follows from the figures: above chance, below it, or no difference found."""

from __future__ import annotations

import pytest

from nex_vllm.cli.demo_report import conclude
from nex_vllm.storage import Diagnostics
from nex_vllm.storage.comparison_file import SelectorResult

WARNED = Diagnostics(
    score_length_correlation=0.8,
    split_half_agreement=0.9,
    warnings=("first_cycle_share cannot be told: ...", "score_length_correlation is +0.80, above +0.1: ..."),
)


def said(low: float | None, high: float | None, diagnostics: Diagnostics | None = WARNED) -> str:
    gain = -0.1 if high is not None and high < 0 else 0.1
    results = {name: SelectorResult(accuracy=share) for name, share in (("shortest", 0.5), ("majority", 0.6))}
    results |= {"logprob": SelectorResult(accuracy=0.55), "oracle": SelectorResult(accuracy=1.0)}
    return conclude({**results, "nex": SelectorResult(0.4, gain, low, high)}, 40, diagnostics)


def test_above_chance_it_is_said_with_the_interval() -> None:
    assert said(0.02, 0.18) == (
        "On this model NEX chooses better than chance (+10.0 points, 95 % interval +2.0 to +18.0, over 40 problems)."
    )


def test_below_chance_it_is_said_with_what_had_warned_and_which_selector_to_use() -> None:
    sentence = said(-0.18, -0.02)
    assert sentence.startswith("On this model NEX chooses worse than chance (-10.0 points")
    assert "the calibration had warned: score_length_correlation +0.800; of the selectors" in sentence
    assert "of the selectors without labels majority (right in 60.0 %) was right most often here" in sentence


@pytest.mark.parametrize("diagnostics", [None, Diagnostics(score_length_correlation=-0.3)])
def test_below_chance_without_a_warning_that_is_said(diagnostics: Diagnostics | None) -> None:
    assert "no diagnostic of the calibration had warned; of" in said(-0.18, -0.02, diagnostics)


def test_across_chance_no_difference_was_found() -> None:
    assert said(-0.02, 0.18) == (
        "No difference between NEX's choice and a random one was found over 40 problems (+10.0 points, 95 % interval "
        "-2.0 to +18.0); docs/study.md has what 500 problems told."
    )


def test_one_problem_has_no_interval() -> None:
    assert "too few for an interval" in said(None, None)
