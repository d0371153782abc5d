"""The file of a learned selector: what is written is read again, and what breaks the format is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nex_vllm.errors import InputError
from nex_vllm.storage import SelectorFile, check_selector_fits, load_selector, save_selector

FILE = SelectorFile(
    signals=["score", "votes"],
    coefficients={"score": 0.5, "votes": -1.25},
    row_tokens=32,
    deepconf_window=2048,
    extract="boxed",
    trained_on={"num_problems": 40, "n": 4, "created_with": "tests", "model": "countdown"},
    cross_validated={"gain": 0.031},
)


def test_what_is_written_is_read_again_and_a_person_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "selector.json"
    save_selector(path, FILE)
    assert load_selector(path) == FILE
    assert load_selector(path).selector.coefficients == {"score": 0.5, "votes": -1.25}
    text = path.read_text()
    assert json.loads(text)["format"] == "nex-selector/1"
    assert '\n    "votes": -1.25\n' in text, "a coefficient a line"
    with pytest.raises(InputError, match="already exists"):
        save_selector(path, FILE)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "nex-selector/2"}, ["nex-selector/2", "upgrade"]),
        ({"format": "nex-weights/1"}, ["nex-weights/1", "nex-selector/1"]),
        ({"signals": ["score", "karma"]}, ["'karma'", "score, logprob"]),
        ({"signals": ["score"]}, ["['score']", "'votes'", "coefficient for each"]),
        ({"signals": ["score", "votes", "votes"]}, ["a coefficient for each"]),
        ({"signals": [], "coefficients": {}}, ["at least one signal"]),
        ({"coefficients": {"score": float("nan"), "votes": 1}}, ["nan", "score", "finite"]),
        ({"coefficients": {"score": "high", "votes": 1}}, ["expected `float`"]),
        ({"coefficients": {"score": True, "votes": 1}}, ["expected `float`"]),
        ({"extract": None}, ["votes", "extract"]),
        ({"row_tokens": 0}, ["row_tokens", ">= 1"]),
        ({"deepconf_window": None}, ["deepconf_window"]),
    ],
    ids=str,
)
def test_a_file_that_breaks_the_format_is_refused(fields: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "selector.json"
    save_selector(path, FILE)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(InputError) as error:
        load_selector(path)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": "nex-selector/1", "coefficients": {"score": 1e999}}'])
def test_what_is_no_selector_at_all_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "selector.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"selector\.json"):
        load_selector(path)


def test_nothing_is_written_that_could_not_be_read_again(tmp_path: Path) -> None:
    for broken in (replace(FILE, coefficients={"score": float("inf"), "votes": 0.0}), replace(FILE, extract=None)):
        with pytest.raises(InputError):
            save_selector(tmp_path / "selector.json", broken)
    assert list(tmp_path.iterdir()) == []


def _check(*signals: str, **engine: Any) -> None:
    names = list(signals)
    file = replace(FILE, signals=names, coefficients=dict.fromkeys(names, 1.0), top_k=24, weights_digest="a" * 64)
    usual = {"extract": "boxed", "deepconf_window": 2048, "row_tokens": 32, "top_k": 24, "has_weights": True}
    check_selector_fits(file, **{**usual, **engine}, source="selector.json")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signal", "engine", "words"),
    [
        ("votes", {"extract": "choice"}, ["extract 'boxed'", "'choice'"]),
        ("votes_nex", {"extract": None}, ["extract 'boxed'", "None"]),
        ("deepconf_lowest", {"deepconf_window": 64}, ["deepconf_window 2048", "64"]),
        ("top20_entropy", {"row_tokens": 8}, ["row_tokens 32", "8"]),
        ("medoid_distance", {"top_k": 2000}, ["top_k 24", "2000"]),
        ("votes_nex", {"has_weights": False}, ["votes_nex", "--nex-weights"]),
        ("score", {"has_weights": False, "weights_flag": "--weights"}, ["score", "give --weights, or fit"]),
        ("score", {"weights_digest": "b" * 64}, ["digest aaaa", "have bbbb", "give the weights"]),
    ],
)
def test_signals_that_the_engine_measures_otherwise_are_refused_with_both_named(
    signal: str, engine: dict[str, Any], words: list[str]
) -> None:
    _check("entropy", signal)
    with pytest.raises(InputError) as error:
        _check("entropy", signal, **engine)
    assert all(word in str(error.value) for word in ["selector.json", *words]), error.value
    _check("entropy", "num_tokens", **engine)


def test_scores_by_weights_that_are_not_known_are_taken_to_fit() -> None:
    _check("score", weights_digest=None)
    _check("score", weights_digest="a" * 64)


def test_signals_of_another_part_are_refused_but_for_those_of_the_whole_response() -> None:
    served = {"part": "reasoning", "reasoning_end": "</think>"}
    with pytest.raises(InputError, match="measured with part 'all', but the engine has 'reasoning'"):
        _check("entropy", **served)
    _check("votes", "num_tokens", **served)
    file = SelectorFile(["score"], {"score": 1.0}, 32, 2048, part="reasoning", reasoning_end="</think>")
    usual: Any = {"extract": None, "deepconf_window": 9, "row_tokens": 9, "top_k": 9, "has_weights": True, "source": ""}
    check_selector_fits(file, **usual, **served)
    with pytest.raises(InputError, match="reasoning_end '</think>', but the engine has 'Answer'"):
        check_selector_fits(file, **usual, part="reasoning", reasoning_end="Answer")
