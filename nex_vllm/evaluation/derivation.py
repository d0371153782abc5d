"""Rows as another recording of the same tokens would have them: fewer neurons a token, more tokens a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.evaluation.sums import add_up_rows
from nex_vllm.storage import CacheMeta


def check_derivable(meta: CacheMeta, top_k: int, row_tokens: int, source: object) -> None:
    """Refuse rows that do not follow from what was recorded; ``source`` names it.

    Raises:
        InputError: more neurons a token than were kept, fewer where tokens were added up, or rows that the recorded
            ones do not fill.
    """
    if top_k > meta.top_k:
        raise InputError(
            f"top_k {top_k} does not follow from {source}, which keeps {meta.top_k} neurons of each token; record with "
            f"--top-k {top_k} or more"
        )
    if top_k < meta.top_k and meta.row_tokens != 1:
        raise InputError(
            f"top_k {top_k} does not follow from {source}, whose rows add up {meta.row_tokens} tokens of {meta.top_k} "
            "neurons each; record with --row-tokens 1"
        )
    if row_tokens % meta.row_tokens:
        raise InputError(
            f"row_tokens {row_tokens} does not follow from {source}, whose rows have {meta.row_tokens} tokens; give a "
            "multiple of that, or record with --row-tokens 1"
        )


def derive_rows(rows: ResponseRows, meta: CacheMeta, top_k: int, row_tokens: int) -> ResponseRows:
    """Return the rows that a recording with these settings would have made of the same tokens.

    Sums are those of the recorded rows: where these have one token each, exactly what would have been recorded, else
    to a float32 rounding.

    Args:
        rows: as recorded.
        meta: how.
        top_k: neurons kept per token.
        row_tokens: tokens per row.

    Raises:
        InputError: a row before the last is not full, which no recording of ours leaves.
    """
    if top_k < meta.top_k:
        rows = keep_top(rows, top_k)
    return merge_rows(rows, meta.row_tokens, row_tokens // meta.row_tokens) if row_tokens > meta.row_tokens else rows


def keep_top(rows: ResponseRows, top_k: int) -> ResponseRows:
    """Keep the neurons of each row, of one token, whose mass is at least the K-th largest; ties are all kept."""
    kept = np.ones(len(rows.keys), dtype=np.bool_)
    for start, stop in zip(rows.indptr[:-1].tolist(), rows.indptr[1:].tolist(), strict=True):
        if stop - start > top_k:
            masses = rows.masses[start:stop]
            kept[start:stop] = masses >= np.partition(masses, -top_k)[-top_k]
    indptr = np.concatenate([[0], np.cumsum(kept)])[rows.indptr].astype(np.int64)
    return replace(rows, indptr=indptr, keys=rows.keys[kept], masses=rows.masses[kept])


def merge_rows(rows: ResponseRows, row_tokens: int, factor: int) -> ResponseRows:
    """Put ``factor`` rows of ``row_tokens`` tokens into one; the last row gets what is left.

    Masses add up, entropy and log-probability are means over tokens.

    Raises:
        InputError: a row before the last is not full.
    """
    full = rows.tokens[:-1] == row_tokens
    if not full.all():
        row = int(full.argmin())
        raise InputError(
            f"row {row} of response {rows.response!r:.80} has {rows.tokens[row]} tokens, expected {row_tokens} in "
            "every row before the last; record again"
        )
    scratch = KeyScratch(key_space(rows))
    starts = np.arange(0, rows.num_rows, factor)
    merged = [add_up_rows(rows, start, min(start + factor, rows.num_rows), scratch) for start in starts.tolist()]
    tokens = np.add.reduceat(rows.tokens, starts) if len(starts) else rows.tokens

    def mean(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        weighted = values.astype(np.float64) * rows.tokens
        sums = np.add.reduceat(weighted, starts) if len(starts) else weighted
        return (sums / tokens).astype(np.float32)

    return ResponseRows(
        response=rows.response,
        tokens=tokens.astype(np.int32),
        indptr=np.cumsum([0, *(len(keys) for keys, _ in merged)], dtype=np.int64),
        keys=np.concatenate([np.empty(0, np.uint32), *(keys for keys, _ in merged)]),
        masses=np.concatenate([np.empty(0), *(masses for _, masses in merged)]).astype(np.float32),
        entropy=mean(rows.entropy),
        logprob=mean(rows.logprob),
    )
