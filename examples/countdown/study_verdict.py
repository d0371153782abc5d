"""What the study's outcomes come to in words, as PROTOCOL.md says ("What will be said")."""

from __future__ import annotations

import json
from collections.abc import Sequence

from study_cells import Outcome, percent, points, share
from study_figures import LIKE_LENGTH

from nex_vllm.cli.demo_report import LABEL_FREE, said_beforehand
from nex_vllm.storage import decode_diagnostics


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Say what the protocol says is to be said."""
    first = outcomes[0]
    main = first["minus_random"]["nex"]
    signs = {outcome["minus_random"]["nex"]["value"] > 0 for outcome in outcomes}
    words = []
    if len(signs) > 1:
        words.append("The sign differs between training seeds.")
    gain = f"NEX best of 4 minus random, training seed {first['training_seed']}: {points(main)}."
    if main["low"] is None:
        return " ".join([*words, gain, "There is one set of numbers, so no interval."])
    best = max(LABEL_FREE, key=lambda name: first["accuracy"][name]["value"])
    rival = f"{percent(first['accuracy'][best]['value'])} with `{best}`, the best of {', '.join(LABEL_FREE)}"
    if main["low"] > 0:
        words.append(f"Above chance. {gain}")
        words += _of_like_length(first["length"]["pairs_like"])
        words.append(
            "This shows that the plumbing works, and what NEX rewards on a model of 3 million parameters whose grammar "
            "was designed so that success and failure share their words. It is no evidence for the claim about large "
            "models."
        )
    elif main["high"] < 0:
        beforehand = said_beforehand([decode_diagnostics(json.dumps(each), "a run") for each in first["diagnostics"]])
        words.append(f"Below chance. {gain} Beforehand, {beforehand}. The choice was right in {rival}.")
    else:
        words.append(f"No difference was found. {gain}")
    if main["high"] >= 0:
        nex = percent(first["accuracy"]["nex"]["value"])
        words.append(f"The choice was right in {nex} with NEX, and in {rival}.")
    if len(outcomes) > 1:
        others = "; ".join(f"seed {each['training_seed']}: {points(each['minus_random']['nex'])}" for each in outcomes)
        words.append(f"By training seed: {others}.")
    return " ".join(words)


def _of_like_length(like: Outcome) -> list[str]:
    """Say what is left of a gain among pairs of like length."""
    alike = f"pairs of like length (within {100 * LIKE_LENGTH:.0f} %)"
    if like["low"] is None:
        return [f"There are no {alike} to tell it from a preference for short responses."]
    if like["low"] > 0.5:
        return []
    if like["high"] < 0.5:
        return [
            f"But in {alike} the right one scores lower: NEX has found the shorter ones, and `shortest` "
            "does that without a calibration."
        ]
    return [
        f"But in {alike} no difference was found: the right one scores higher in {share(like)}. So a preference for "
        "short responses is enough to explain the gain, and `shortest` has that without a calibration."
    ]
