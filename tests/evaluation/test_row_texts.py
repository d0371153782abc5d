"""Which characters of a response belong to which of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nex_vllm.evaluation.report.row_texts import RowCutter, load_tokenizer


@pytest.fixture(scope="module")
def cutter(shipped_model: Path) -> RowCutter:
    return RowCutter(load_tokenizer(shipped_model, "any"))


def tokens_of(model: Path, text: str) -> list[int]:
    ids: list[int] = load_tokenizer(model, "any").encode(text).ids
    return ids


def test_rows_get_the_text_of_their_own_tokens(shipped_model: Path, cutter: RowCutter) -> None:
    text = "Have 6 13 3 want 22\nTry 6 + 3 = 9 left 13 9"
    ids = tokens_of(shipped_model, text)
    tokenizer = load_tokenizer(None, str(shipped_model))  # found by the model's name, which is its folder
    sizes = [8] * (len(ids) // 8) + [len(ids) % 8]
    parts, exact = RowCutter(tokenizer).cut(text, ids, sizes)
    assert exact
    assert "".join(parts) == text
    for end in range(1, len(sizes)):
        assert "".join(parts[:end]).strip() == tokenizer.decode(ids[: sum(sizes[:end])]).strip()


def test_text_after_a_stop_string_is_of_no_row(shipped_model: Path, cutter: RowCutter) -> None:
    ids = tokens_of(shipped_model, "Have 6 13 3 want 22")
    assert cutter.cut("Have 6 13", ids, [2, len(ids) - 2]) == (["Have 6", " 13"], True)
    assert cutter.cut(" Have 6 13 3 want 22", ids, [len(ids)]) == ([" Have 6 13 3 want 22"], True)


def test_text_after_the_reasoning_is_of_no_row(cutter: RowCutter, shipped_model: Path) -> None:
    ids = tokens_of(shipped_model, "Have 6 13 3 want 22")
    assert cutter.cut("Have 6 13 3 want 22", ids, [1, 2]) == (["Have", " 6 13"], True)
    assert cutter.cut("x" * 60, ids, [1, 2]) == (["x" * 10, "x" * 20], False)


@pytest.mark.parametrize(
    ("text", "ids"), [("another text", [5, 6, 7, 8]), ("some text", None), ("some text", [5] * 3), ("", [10**9] * 4)]
)
def test_rows_get_their_share_where_tokens_and_text_do_not_match(cutter: RowCutter, text: str, ids: Any) -> None:
    parts, exact = cutter.cut(text, ids, [3, 1])
    assert "".join(parts) == text
    assert not exact or not text
    if text and not exact:
        assert len(parts[0]) == len(text) * 3 // 4
