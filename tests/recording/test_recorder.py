"""When a step may record what the step before recorded, and when it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nex_vllm.recording.layout import NeuronLayout
from nex_vllm.recording.record import Record
from nex_vllm.recording.recorder import Recorder, RecordingOptions, ScheduledRequest
from nex_vllm.recording.statistics import LogitStatistics


@pytest.fixture
def recorder() -> Recorder:
    record = Record(
        NeuronLayout(num_layers=1, width=32),
        top_k=4,
        weights=np.ones(32, np.float32),
        max_tokens=16,
        max_rows=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    statistics = LogitStatistics(8, 50, torch.device("cpu"))
    recorder = Recorder(record, statistics, teacher_forced=False)
    for name in ("a", "b"):
        recorder.follow(name, RecordingOptions(), 5)
    return recorder


def _batch(**num_rows: int) -> tuple[list[ScheduledRequest], torch.Tensor]:
    """Return a batch of requests with these numbers of rows, and its rows with logits, each request's last."""
    parts, first = [], 0
    for index, (name, count) in enumerate(num_rows.items()):
        parts.append(ScheduledRequest(name, first, count, 0, index, 1))
        first += count
    return parts, torch.tensor([part.first_row + part.num_rows - 1 for part in parts])


def test_a_batch_one_token_further_is_recorded_as_the_one_before(recorder: Recorder) -> None:
    recorder.begin(*_batch(a=1, plain=1, b=1))
    slots = recorder.record.slots.tolist()
    assert slots[:4] == [0, -1, 1, -1]
    for _ in range(2):
        step = recorder.finish()
        assert step is not None
        assert step.stats_rows is None, "nobody asked for statistics"
        assert step.spans == {"a": (0, 1), "b": (1, 1)}
        assert recorder.repeat(["a", "plain", "b"], 3)
    assert recorder.record.slots.tolist() == slots


@pytest.mark.parametrize(
    ("request_ids", "num_tokens"),
    [
        (["a", "plain", "b"], 7),  # the same requests, started over: other rows are sampled from
        (["a", "b", "plain"], 3),
        (["a", "b"], 2),
        (["a", "plain", "b", "c"], 4),
    ],
)
def test_any_other_batch_is_not(recorder: Recorder, request_ids: list[str], num_tokens: int) -> None:
    recorder.begin(*_batch(a=1, plain=1, b=1))
    assert recorder.finish() is not None
    assert not recorder.repeat(request_ids, num_tokens)
    assert recorder.finish() is None, "nothing is reduced that was not begun"


def test_a_prefill_is_never_repeated(recorder: Recorder) -> None:
    recorder.begin(*_batch(a=4, b=1))
    assert recorder.record.slots.tolist()[:6] == [-1, -1, -1, 0, 1, -1]
    assert recorder.finish() is not None
    assert not recorder.repeat(["a", "b"], 2)


def test_nothing_is_recorded_once_nobody_asks(recorder: Recorder) -> None:
    recorder.begin(*_batch(a=1, b=1))
    recorder.forget(["a", "b"])
    assert recorder.is_idle
    recorder.pause()
    assert set(recorder.record.slots.tolist()) == {-1}
    assert recorder.finish() is None
    assert not recorder.repeat(["a", "b"], 2)
