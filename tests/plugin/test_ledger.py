"""The vLLM names that NEX relies upon are there and take what we pass."""

from __future__ import annotations

import dataclasses

import pytest

from nex_vllm import InputError
from nex_vllm.plugin import ledger_check
from nex_vllm.plugin.ledger import LEDGER, Entry


@pytest.mark.parametrize("entry", LEDGER, ids=lambda entry: entry.name)
def test_vllm_still_has(entry: Entry) -> None:
    assert ledger_check.problem_of(entry) is None


def test_every_entry_has_its_own_name() -> None:
    assert len({entry.name for entry in LEDGER}) == len(LEDGER)


def test_all_that_is_missing_is_named_in_one_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = {entry.name: entry for entry in LEDGER}
    gone = dataclasses.replace(by_name["merge-outputs"], target="vllm.outputs:RequestOutput.merge")
    changed = dataclasses.replace(by_name["free-request"], parameters=("self", "request_id"))
    unset = dataclasses.replace(by_name["request-state"], sets=("parent_req", "parent"))
    monkeypatch.setattr(ledger_check, "LEDGER", (*LEDGER, gone, changed, unset))
    with pytest.raises(InputError) as error:
        ledger_check.require_all()
    assert str(error.value).count("vllm.") == 3
    for words in (
        "RequestOutput.merge is missing (keep the selection",
        "_free_request takes self, request, delay_free_blocks, not self, request_id",
        "__init__ no longer sets parent (",
    ):
        assert words in str(error.value)
