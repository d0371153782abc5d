"""Which part of a response's text each of its rows is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.storage.files import error_reason

TOKENIZER_NAME = "tokenizer.json"

Cut = tuple[list[str], bool]
"""The text of each row, and whether it is exact (else rows are given their share of the characters)."""


class RowCutter:
    """Cut texts into the rows that their tokens make, with the model's tokenizer where there is one.

    ``tokenizer`` is a `tokenizers.Tokenizer`, None to give each row its share of the characters.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    def cut(self, text: str, token_ids: Sequence[int] | None, row_tokens: Sequence[int]) -> Cut:
        """Return the text of each row; ``row_tokens`` are the tokens of each. Joined, they are ``text`` again.

        Where only the reasoning was recorded, the text of the tokens behind it is in no row.
        """
        rest = len(token_ids or ()) - sum(row_tokens)
        if rest > 0:
            texts, is_exact = self.cut(text, token_ids, [*row_tokens, rest])
            return texts[:-1], is_exact
        if self._tokenizer is not None and token_ids is not None and len(token_ids) == sum(row_tokens):
            pieces = _decode(self._tokenizer, token_ids)
            exact = None if pieces is None else _fit(_join_rows(pieces, row_tokens), text)
            if exact is not None:
                return exact, True
        return _share(text, row_tokens), False


def load_tokenizer(folder: Path | None, model: str) -> Any | None:
    """Return the tokenizer in the folder that was given, else of the model where it is on this machine, else None.

    ``model`` is its folder or its name on the Hugging Face hub; nothing is downloaded. Raises `InputError` where a
    folder was given and has no usable ``tokenizer.json``, or the package to read it with is not installed.
    """
    path = folder / TOKENIZER_NAME if folder is not None else _local_file(model)
    if path is None:
        return None
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        if folder is None:
            return None
        raise InputError(
            f"{folder} has no tokenizer that can be read ({error_reason(error)}); give the folder of the model, with "
            f"its {TOKENIZER_NAME}, and install the package tokenizers"
        ) from None


def _local_file(model: str) -> Path | None:
    path = Path(model) / TOKENIZER_NAME
    try:
        if path.is_file():
            return path
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, TOKENIZER_NAME)
    except (OSError, ValueError, ImportError):  # not a name of the hub; the package is not here
        return None
    return Path(found) if isinstance(found, str) else None


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> list[str] | None:
    """Return the text that each token adds, as vLLM makes it: a character comes with its last byte; None on failure."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    try:
        return [stream.step(tokenizer, token) or "" for token in token_ids]
    except Exception:  # the same: an invalid prefix, an id of another model
        return None


def _join_rows(pieces: Sequence[str], row_tokens: Sequence[int]) -> list[str]:
    rows, start = [], 0
    for count in row_tokens:
        rows.append("".join(pieces[start : start + count]))
        start += count
    return rows


def _fit(rows: list[str], text: str) -> list[str] | None:
    """Make rows join to the recorded text exactly, None where they are of another text.

    Three differences are no others: white space at the start, which a decoder leaves out without the prompt before it;
    the last character where its bytes are incomplete; and what follows a stop string, of which there is no text.
    """
    joined = "".join(rows)
    head = text[: len(text) - len(text.lstrip())] if not joined[:1].isspace() else ""
    if head and text.startswith(head + joined[:1]):
        rows, joined = [head + rows[0], *rows[1:]], head + joined
    if text.startswith(joined) and not text[len(joined) :].strip("\ufffd"):
        return [*rows[:-1], rows[-1] + text[len(joined) :]]
    if not joined.startswith(text):
        return None
    fitted, left = [], len(text)
    for row in rows:
        fitted.append(row[:left])
        left -= len(fitted[-1])
    return fitted


def _share(text: str, row_tokens: Sequence[int]) -> list[str]:
    """Give each row as large a share of the characters as it has of the tokens."""
    total, seen, rows, start = sum(row_tokens), 0, [], 0
    for count in row_tokens:
        seen += count
        stop = len(text) * seen // total
        rows.append(text[start:stop])
        start = stop
    return rows
