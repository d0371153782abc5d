"""What a calibration says about itself without labels, as it stands in a weights file's metadata and in JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from nex_vllm.storage.files import decode_object


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The diagnostics of section 8 of the specification; None where a quantity cannot be told, or was not measured.

    Attributes:
        num_prompts: prompts of the calibration.
        num_responses: responses to them.
        samples: largest number of responses to one prompt.
        num_too_short: responses of too few rows to segment.
        score_length_correlation: see `nex_vllm.evaluation.diagnostics.MEANINGS`, as for all that follow.
        split_half_agreement: see there.
        chance_agreement: what agreement would be by chance.
        share_under_two_cycles: see there.
        first_cycle_share: see there.
        late_bad_mass: see there.
        score_spread: see there.
        score_noise: see there.
        warnings: a sentence for each threshold that is passed and for what cannot be told.
    """

    num_prompts: int | None = None
    num_responses: int | None = None
    samples: int | None = None
    num_too_short: int | None = None
    score_length_correlation: float | None = None
    split_half_agreement: float | None = None
    chance_agreement: float | None = None
    share_under_two_cycles: float | None = None
    first_cycle_share: float | None = None
    late_bad_mass: float | None = None
    score_spread: float | None = None
    score_noise: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands in JSON files."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def encode(self) -> str:
        """Return the JSON text that stands in a weights file's metadata."""
        return msgspec.json.encode(self.to_json()).decode()


def decode_diagnostics(text: str, where: str) -> Diagnostics:
    """Read what :meth:`Diagnostics.encode` wrote; entries that it does not know are ignored.

    Raises `InputError`, which starts with ``where``, where the text is not that.
    """
    return decode_object(text.encode(), where, Diagnostics)
