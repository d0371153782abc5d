"""Ranks compare their settings through a real store; none of them waits for ever."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import FileStore, HashStore, TCPStore

from nex_vllm.errors import NexError
from nex_vllm.recording.agreement import agree


def _compare(port: int, rank: int, size: int, settings: dict[str, Any], answers: Any) -> None:
    store = TCPStore("127.0.0.1", port, is_master=False)
    try:
        agree(store, rank, size, settings, timedelta(seconds=20))
        answers.put((rank, None))
    except NexError as error:
        answers.put((rank, f"{type(error).__name__}: {error}"))


def _outcomes(*settings: dict[str, Any]) -> dict[int, str | None]:
    """Let one process a rank compare its settings with the others'; return what each was told."""
    master = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [
        context.Process(target=_compare, args=(master.port, rank, len(settings), each, answers))
        for rank, each in enumerate(settings)
    ]
    for rank in ranks:
        rank.start()
    outcomes = dict(answers.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join()
    return outcomes


def test_ranks_of_the_same_settings_go_on() -> None:
    settings = {"top_k": 24, "weights": "sha256 1234"}
    assert _outcomes(settings, settings, settings) == {0: None, 1: None, 2: None}


def test_every_rank_is_told_which_setting_differs() -> None:
    outcomes = _outcomes({"top_k": 24, "row_tokens": 8}, {"top_k": 2000, "row_tokens": 8})
    assert outcomes[0] is not None
    assert outcomes[1] is not None
    assert outcomes[0].startswith("InputError: The NEX setting top_k is 24 for rank 0, but 2000 for rank 1;")
    assert outcomes[1].startswith("InputError: The NEX setting top_k is 2000 for rank 1, but 24 for rank 0;")


def test_a_setting_that_only_one_rank_knows_differs_too() -> None:
    outcomes = _outcomes({"top_k": 24}, {"top_k": 24, "part": "reasoning"})
    assert "part is None for rank 0, but 'reasoning' for rank 1" in str(outcomes[0])


@pytest.mark.parametrize("kind", ["tcp", "file", "hash"])
def test_a_rank_without_nex_ends_the_others_with_a_sentence(kind: str, tmp_path: Path) -> None:
    store = {
        "tcp": lambda: TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False),
        "file": lambda: FileStore(str(tmp_path / "store"), 2),
        "hash": HashStore,
    }[kind]()
    with pytest.raises(NexError, match=r"NEX is on for rank 0 of 2, but rank 1 did not say so within 0.5 s; start"):
        agree(store, 0, 2, {"top_k": 24}, timedelta(seconds=0.5))


def test_an_engine_does_not_read_what_an_earlier_one_in_the_same_processes_said() -> None:
    store = HashStore()
    agree(store, 0, 1, {"top_k": 24}, timedelta(seconds=1))
    agree(store, 0, 1, {"top_k": 2000}, timedelta(seconds=1))
    with pytest.raises(NexError, match="rank 0 did not say so"):
        agree(store, 1, 2, {"top_k": 24}, timedelta(seconds=0.2))
