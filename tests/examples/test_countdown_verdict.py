"""What the study says of its outcomes is what the protocol says is to be said."""

from __future__ import annotations

import pytest
from study_verdict import verdict

from nex_vllm.storage import Diagnostics

WARNED = [
    Diagnostics(score_length_correlation=0.2, warnings=("score_length_correlation is +0.20, above +0.1: longer",)),
    Diagnostics(
        score_length_correlation=0.3,
        share_under_two_cycles=0.96,
        warnings=(
            "score_length_correlation is +0.30, above",
            "share_under_two_cycles is 0.96, above",
            "late_bad_mass cannot",
        ),
    ),
    Diagnostics(score_length_correlation=-0.1, share_under_two_cycles=0.4),
]


@pytest.mark.parametrize(
    ("gain", "seeds", "like", "words"),
    [
        (
            (0.05, 0.02, 0.08),
            (1,),
            (0.55, 0.7),
            "Above chance. NEX best of 4 minus random, training seed 1: +5.0 (+2.0 to +8.0)",
        ),
        ((0.05, 0.02, 0.08), (1,), (0.45, 0.55), "in pairs of like length (within 20 %) no difference was found"),
        ((0.05, 0.02, 0.08), (1,), (0.4, 0.45), "in pairs of like length (within 20 %) the right one scores lower"),
        ((0.05, 0.02, 0.08), (1,), (None, None), "no pairs of like length (within 20 %)"),
        (
            (-0.05, -0.08, -0.02),
            (1,),
            (0.5, 0.6),
            "Below chance. NEX best of 4 minus random, training seed 1: -5.0 (-8.0 to -2.0). Beforehand, the "
            "calibrations had warned: score_length_correlation +0.200 to +0.300 (2 of 3), share_under_two_cycles 0.960 "
            "(1 of 3). The choice was right in 60.0 % with `logprob`, the best of shortest, logprob, majority.",
        ),
        ((0.05, -0.02, 0.08), (1,), (0.5, 0.6), "No difference was found."),
        (
            (0.05, 0.02, 0.08),
            (1,),
            (0.55, 0.7),
            "right in 45.0 % with NEX, and in 60.0 % with `logprob`, the best of shortest, logprob, majority.",
        ),
        ((0.05, 0.02, 0.08), (1, -1), (0.55, 0.6), "The sign differs between training seeds. Above chance."),
    ],
)
def test_what_is_said_is_what_the_protocol_says(
    gain: tuple[float, float, float], seeds: tuple[int, ...], like: tuple[float | None, float | None], words: str
) -> None:
    rates = {"shortest": 0.4, "logprob": 0.6, "majority": 0.5, "nex": 0.45}
    accuracy = {name: {"value": value} for name, value in rates.items()}
    outcomes = [
        {
            "training_seed": number,
            "diagnostics": [each.to_json() for each in WARNED],
            "accuracy": accuracy,
            "minus_random": {"nex": dict(zip(("value", "low", "high"), [sign * each for each in gain], strict=True))},
            "length": {"pairs_like": {"value": 0.5, "low": like[0], "high": like[1], "num_pairs": 9}},
        }
        for number, sign in enumerate(seeds, start=1)
    ]
    assert words in verdict(outcomes)
