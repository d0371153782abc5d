"""What a report says, before it is drawn: a page and pictures are made of one `Report`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nex_vllm.algorithm import CalibrationSummary
from nex_vllm.evaluation.report.comparison import ComparisonFigures
from nex_vllm.evaluation.report.figures import (
    PAPER_CORRELATION,
    PAPER_ENTROPY,
    PAPER_SEGMENTS,
    Histogram,
    WeightFigures,
    count_in_bins,
)
from nex_vllm.evaluation.report.findings import CacheFindings
from nex_vllm.evaluation.report.responses import PAGE_BYTES, ShownResponses

Bar = tuple[str, float, str, str]
"""Label, length in [0, 1], number as text, and class (which colours it)."""

Quantity = tuple[str, str, str]
"""Name, value here, value in the paper."""


@dataclass(slots=True)
class Report:
    """Everything that a report says; what its source does not have is None or empty.

    Attributes:
        title: of the page.
        facts: what was read and how it was made: (name, value), text of the user's and the model's among it.
        notes: sentences on what the reader must know.
        warnings: sentences of the diagnostics.
        diagnostics: (name, value, meaning).
        weights_from: a sentence that ends the one on the weights.
        scored_by: ends "Scores of N responses".
    """

    title: str
    created_with: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    diagnostics: list[tuple[str, str, str]] = field(default_factory=list)
    weights: WeightFigures | None = None
    weights_from: str = ""
    findings: CacheFindings | None = None
    scored_by: str = ""
    row_tokens: int = 32
    shown: ShownResponses | None = None
    comparison: ComparisonFigures | None = None

    @property
    def scores(self) -> Histogram | None:
        """The scores of all responses in bins."""
        return count_in_bins(self.findings.scores) if self.findings else None

    @property
    def model_score(self) -> float | None:
        """Mean score of the responses that have one."""
        return float(np.mean(self.findings.scores)) if self.findings and self.findings.scores else None

    @property
    def segments(self) -> Histogram | None:
        """E segments of a response, a bin for each number up to 40, then for as many as it takes."""
        if not self.findings or not self.findings.segments:
            return None
        most = max(self.findings.segments) + 1
        width = -(-most // 40)
        counts = np.bincount(np.array(self.findings.segments) // width, minlength=2)
        return Histogram(-0.5, float(width), counts.tolist())

    @property
    def entropy_bars(self) -> list[Bar]:
        """Mean token entropy in E and X, here and in the paper's table 5; none where no entropy was recorded."""
        return entropy_bars(self.findings.summary) if self.findings else []

    @property
    def quantities(self) -> list[Quantity]:
        """What a calibration counts, beside the paper's numbers."""
        return quantities(self.findings.summary, self.row_tokens, self.model_score) if self.findings else []

    @property
    def shown_sentence(self) -> str:
        """How many responses are on the page, and why not all."""
        if self.shown is None:
            return ""
        count, total = len(self.shown.index), self.shown.num_seen
        asked = self.shown.most if self.shown.wanted is None else len(self.shown.wanted)
        limit = "no more were asked for" if count >= asked else f"a page holds {PAGE_BYTES >> 20} MiB of them"
        here = (
            f"All {total} responses are here."
            if count == total
            else f"The first {count} of {total} responses are here ({limit}); all of them count in tables and figures."
        )
        if not self.shown.num_estimated:
            return here
        return (
            f"{here} In {self.shown.num_estimated} of them the places where rows begin are estimates, because the "
            "model's tokenizer was not at hand or did not fit; --tokenizer names its folder."
        )


def entropy_bars(summary: CalibrationSummary) -> list[Bar]:
    """Return the rows of a bar chart of phase entropies in nats, as in table 5 of the paper; none without entropies."""
    here = summary.explore_entropy, summary.exploit_entropy
    if here[0] is None or here[1] is None:
        return []
    measured = [("here", here[0], here[1]), *((f"paper, {name}", e, x) for name, e, x in PAPER_ENTROPY)]
    most = max(value for _, *pair in measured for value in pair)
    return [
        (f"{phase} {name}", value / most, f"{value:.4f}", kind)
        for name, e, x in measured
        for phase, value, kind in (("E", e, "e-bar"), ("X", x, "x-bar"))
    ]


def quantities(summary: CalibrationSummary, row_tokens: int, model_score: float | None) -> list[Quantity]:
    """Return the quantities of section 6 of the specification that recorded rows can give."""

    def decimal(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    share = f"{100 * summary.num_explore_rows / summary.num_rows:.1f} %" if summary.num_rows else "-"
    return [
        ("responses", str(summary.num_responses), "40 to 60 problems suffice"),
        ("tokens", str(summary.num_tokens), ""),
        (f"rows of {row_tokens} tokens", str(summary.num_rows), "of 32 tokens"),
        ("rows that explore (E)", share, ""),
        ("E segments of a response", decimal(summary.explore_segments_per_response, 2), str(PAPER_SEGMENTS)),
        ("cycles", str(summary.num_cycles), ""),
        ("effective", str(summary.num_effective), ""),
        ("redundant", str(summary.num_redundant), ""),
        ("kept out by the strength gate", str(summary.num_gated), ""),
        ("mean entropy of E rows, nats", decimal(summary.explore_entropy, 4), "0.2765"),
        ("mean entropy of X rows, nats", decimal(summary.exploit_entropy, 4), "0.1767"),
        (
            "rank correlation of entropy and novelty",
            decimal(summary.entropy_novelty_correlation, 2),
            str(PAPER_CORRELATION),
        ),
        ("model's score, the mean over responses", decimal(model_score, 6), ""),
    ]
