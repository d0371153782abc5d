"""What a request that asked for NEX gets beside its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import ResponseRows


@dataclass(frozen=True, slots=True)
class SparseSums:
    """Sparse activation sums ``b_k`` of one response.

    Attributes:
        keys: uint32 [E], ascending, ``layer << 16 | unit``.
        masses: float32 [E], summed over the response's tokens, positive.
    """

    keys: npt.NDArray[np.uint32]
    masses: npt.NDArray[np.float32]


@dataclass(slots=True)
class Candidate:
    """One of the n sampled responses.

    Attributes:
        index: its place among the n.
        score: good-mass fraction ``pos_mass / abs_mass`` (eq. 14); None without weights, where not every token was
            recorded, and where the weights do not belong to the model that generated it.
        pos_mass: activation mass on good neurons (eq. 12); None where the score is.
        abs_mass: activation mass on good and bad neurons (eq. 13); None where the score is.
        tot_mass: activation mass on all kept neurons; None where not every token was recorded.
        num_tokens: tokens of the whole response, the end-of-sequence token included.
        finish_reason: vLLM's reason: ``stop``, ``length``, ``abort``, ``error``.
        text: the response as plain vLLM returns it.
        token_ids: the response's tokens.
        sums: sparse activation sums, where asked for by ``nex_return_sums``.
        rows: recorded rows, where asked for by ``nex_return_rows``.
        answer: the answer found in ``text``, in its one form, where something reads it; None too where there is none.
        signals: by name, every signal that the engine can measure, where asked for by ``nex_return_signals``; None for
            a signal that this candidate lacks.
        num_scored_tokens: how many of its tokens count for masses, rows and signals, from the first: all, or those of
            the reasoning. None where NEX failed on the request.
        reasoning_ended: where only the reasoning counts, whether its end came; where it did not, the whole response
            counts. None where everything does.
    """

    index: int
    score: float | None
    pos_mass: float | None
    abs_mass: float | None
    tot_mass: float | None
    num_tokens: int
    finish_reason: str | None
    text: str
    token_ids: list[int] = field(repr=False)
    sums: SparseSums | None = field(default=None, repr=False)
    rows: ResponseRows | None = field(default=None, repr=False)
    answer: str | None = None
    signals: dict[str, float | None] | None = field(default=None, repr=False)
    num_scored_tokens: int | None = None
    reasoning_ended: bool | None = None


@dataclass(slots=True)
class Selection:
    """The choice among a request's candidates; ``RequestOutput.nex``.

    Attributes:
        selected: index of the winner; None if no choice was asked for or none could be made. Where one was asked for,
            ``outputs`` is then the first candidate that ended by itself.
        selector: name of the selector that was asked for, None if none was.
        candidates: all n, in order.
        unscored: why no choice could be made, or why candidates of an engine with weights have no score; one sentence.
            None where nothing went wrong.
        extract: how the candidates' answers were found, the engine's setting; None where nothing reads them.
    """

    selected: int | None
    selector: str | None
    candidates: list[Candidate]
    unscored: str | None = None
    extract: str | None = None
