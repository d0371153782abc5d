"""The numbers behind the figures, which the page and the pictures draw alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import KEY_UNIT_BITS

PAPER_ENTROPY = (("Qwen3-4B", 0.2475, 0.1688), ("average", 0.2765, 0.1767))
"""Mean token entropy in E and in X in nats: rows of the paper's table 5."""

PAPER_CORRELATION = 0.43
"""Rank correlation of token entropy and novelty slope (section 5.1)."""

PAPER_SEGMENTS = 11.6
"""E segments per response at which accuracy peaks (figure 4)."""

MAX_LAYER_BARS = 64
NUM_BINS = 24


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in bins of equal width.

    Attributes:
        low: left edge of the first bin.
        width: of each bin, positive.
        counts: values in each bin, the last closed on both sides.
    """

    low: float
    width: float
    counts: list[int]

    @property
    def high(self) -> float:
        """Right edge of the last bin."""
        return self.low + self.width * len(self.counts)


def count_in_bins(values: Sequence[float], low: float | None = None, high: float | None = None) -> Histogram | None:
    """Count finite values in bins from ``low`` to ``high``, by default their range; None without any."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    low = float(finite.min()) if low is None else low
    high = float(finite.max()) if high is None else high
    if not high > low or not (high - low) / NUM_BINS > math.ulp(abs(high)):
        # All alike, or next to it: one bin in the middle of a range that has a width.
        half = max(abs(low), 1e-9) * 1e-6
        low, high = low - half, high + half
    counts, _ = np.histogram(finite, bins=NUM_BINS, range=(low, high))
    return Histogram(low, (high - low) / NUM_BINS, counts.tolist())


@dataclass(frozen=True, slots=True)
class LayerBar:
    """The neurons with a weight in some layers that follow each other: how many are effective, how many redundant."""

    first: int
    last: int
    effective: int
    redundant: int

    @property
    def name(self) -> str:
        """Number of the layer, or of the first and the last."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class WeightFigures:
    """Weights in numbers: neurons of each sign by layer, and how the weights are distributed over [-1, 1]."""

    layers: list[LayerBar]
    histogram: Histogram | None
    effective: int
    redundant: int
    neurons: int

    @property
    def most(self) -> int:
        """Neurons of one sign in the longest bar; 1 where there is none."""
        return max((max(bar.effective, bar.redundant) for bar in self.layers), default=0) or 1


def describe_weights(
    keys: npt.NDArray[np.uint32], weights: npt.NDArray[np.float32], num_layers: int, intermediate_size: int
) -> WeightFigures:
    """Count effective (w > 0) and redundant (w < 0) neurons by layer, at most 64 bars of as many layers each."""
    together = -(-num_layers // MAX_LAYER_BARS)
    num_bars = -(-num_layers // together)
    bar_of = (keys >> np.uint32(KEY_UNIT_BITS)).astype(np.int64) // together
    effective, redundant = (
        np.bincount(bar_of[chosen], minlength=num_bars).tolist() for chosen in (weights > 0, weights < 0)
    )
    bars = [
        LayerBar(i * together, min((i + 1) * together, num_layers) - 1, effective[i], redundant[i])
        for i in range(num_bars)
    ]
    histogram = count_in_bins(weights.tolist(), -1.0, 1.0)
    return WeightFigures(bars, histogram, sum(effective), sum(redundant), num_layers * intermediate_size)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Novelty slope against entropy of some rows: (entropy in nats, new neurons per token, whether the row is in E)."""

    points: list[tuple[float, float, bool]]
    num_rows: int

    @property
    def most_entropy(self) -> float:
        """Largest entropy of the points; 1 where there is none above 0."""
        return max((point[0] for point in self.points), default=0.0) or 1.0

    @property
    def most_slope(self) -> float:
        """Largest slope of the points; 1 where there is none above 0."""
        return max((point[1] for point in self.points), default=0.0) or 1.0


@dataclass(slots=True)
class RowSample:
    """A sample of rows, each equally likely, in bounded memory (reservoir sampling from a fixed seed)."""

    size: int
    num_rows: int = 0
    _kept: list[tuple[float, float, bool]] = field(default_factory=list)
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, entropy: Iterable[float], slopes: Iterable[float], explore: Iterable[bool]) -> None:
        """Offer the rows of a response; those without a recorded entropy (NaN) are passed over."""
        for row in zip(entropy, slopes, explore, strict=True):
            if not math.isfinite(row[0]):
                continue
            self.num_rows += 1
            if len(self._kept) < self.size:
                self._kept.append(row)
            elif (place := int(self._random.integers(self.num_rows))) < self.size:
                self._kept[place] = row

    def scatter(self) -> Scatter:
        """Return the rows that were kept."""
        return Scatter(self._kept, self.num_rows)


@dataclass(frozen=True, slots=True)
class Interval:
    """A selector's gain over a random choice, in accuracy, with its 95 % interval (None where it was not made)."""

    name: str
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class BestRandomWorst:
    """Accuracy of the highest, of a random, and of the lowest NEX score among n (figure 7)."""

    best: float
    random: float
    worst: float
    n: int

    @property
    def is_ordered(self) -> bool:
        """Whether best >= random >= worst, as in 16 of the paper's 20 models."""
        return self.best >= self.random >= self.worst
