"""Learning at once, through a cache, and in any order gives the same bytes; no engine is started here."""

from __future__ import annotations

import json
import random
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nex_vllm.cli import calibration
from nex_vllm.cli.report import format_diagnostic
from nex_vllm.cli.session import EngineRequest
from nex_vllm.evaluation.derivation import derive_rows
from nex_vllm.evaluation.diagnostics import MEANINGS
from nex_vllm.storage import CacheReader, Diagnostics, decode_diagnostics, load_weights, save_weights
from tests.cli.conftest import Run, write_lines
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import ROW_TOKENS, TOP_K, recorded_rows, write_cache
from tests.cli.test_bad_input import refused

NUM_PROMPTS = 12
FLAGS = ["--samples", 1, "--top-k", TOP_K, "--row-tokens", ROW_TOKENS]


def requested(token_ids: list[int]) -> EngineRequest:
    return EngineRequest("subject", token_ids, SimpleNamespace(seed=1, extra_args={}))


@pytest.fixture
def given(tmp_path: Path, model: Path) -> list[object]:
    prompts = write_lines(tmp_path / "p.jsonl", [{"prompt": "x" * (n + 1)} for n in range(NUM_PROMPTS)])
    return [model, "--prompts", prompts, *FLAGS]


def content(path: Path) -> bytes:
    file = load_weights(path)
    assert len(file.keys) > 100
    return file.keys.tobytes() + file.weights.tobytes()


def test_one_go_equals_recording_first(run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path) -> None:
    direct, through, later = (tmp_path / name for name in ("direct", "through", "later"))
    given = [*given, "--samples", 3]
    assert run("calibrate", *given, "--out", direct).status == 0
    assert run("calibrate", *given, "--out", through, "--cache", tmp_path / "cache").status == 0
    assert run("calibrate", "--from-cache", tmp_path / "cache", "--out", later).status == 0
    assert content(direct) == content(through) == content(later)
    assert load_weights(direct).meta == load_weights(through).meta == load_weights(later).meta
    assert diagnostics_of(direct).samples == 3


def diagnostics_of(path: Path) -> Diagnostics:
    text = load_weights(path).meta.diagnostics
    assert text is not None
    return decode_diagnostics(text, str(path))


def test_four_samples_of_each_prompt_are_the_default_and_their_prompt_is_kept(
    run: Run, fake: type[FakeSession], model: Path, tmp_path: Path
) -> None:
    prompts = write_lines(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}, {"prompt": "xx"}])
    flags = [model, "--prompts", prompts, *FLAGS[2:], "--cache", tmp_path / "cache"]
    assert run("record", *flags).status == 0
    found = {response.id: response.prompt_id for response in CacheReader(tmp_path / "cache").responses()}
    assert found == {f"{prompt}-{k}": prompt for prompt in ("a", "2") for k in range(4)}
    again = run("record", *flags, "--samples", 4)
    assert "8 of 8 responses are in" in again.err
    refusal = run("record", *flags, "--samples", 1)
    assert refusal.status == 2
    assert "recorded with another --samples" in refusal.err


def test_diagnostics_are_printed_kept_and_written(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    """By the calibration, by `inspect` of its weights, and by `inspect` of the cache that they come from."""
    weights, cache, summary = tmp_path / "w", tmp_path / "cache", tmp_path / "summary.json"
    flags = ["--samples", 4, "--cache", cache, "--out", weights, "--json", summary]
    done = run("calibrate", *given, *flags)
    assert done.status == 0
    found = diagnostics_of(weights)
    assert (found.num_prompts, found.num_responses, found.samples) == (NUM_PROMPTS, 4 * NUM_PROMPTS, 4)
    assert found.split_half_agreement is not None
    written = json.loads(summary.read_text())
    assert written["diagnostics"] == found.to_json()
    assert written["summary"]["num_responses"] == 4 * NUM_PROMPTS
    # The responses are drawn at random: nothing can be chosen by them, and the two halves choose differently.
    assert found.split_half_agreement < 0.625
    assert any(warning.startswith("split_half_agreement is ") for warning in found.warnings)
    printed = done.out.partition("diagnostics, which need no labels")[2].partition("neurons have a weight")[0]
    printed = printed.rpartition("\n\n")[0]
    for name in MEANINGS:
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
        value = getattr(found, name)
        assert line.split(None, 1)[1].startswith(f"{format_diagnostic(name, value)} ")
        assert ("warning" in line.split()) == any(warning.startswith(f"{name} is") for warning in found.warnings)
    assert all(warning in " ".join(printed.split()) for warning in found.warnings)
    for path in (weights, cache):
        inspected = run("inspect", path)
        assert inspected.status == 0
        assert printed.strip() in inspected.out
        assert max(map(len, inspected.out.splitlines()[3:])) <= 100


def test_weights_without_diagnostics_say_so_and_unreadable_ones_are_named(run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(f"r{n}", n) for n in range(3)])
    assert run("calibrate", "--from-cache", cache, "--out", tmp_path / "w").status == 0
    file = load_weights(tmp_path / "w")
    for text, status, words in ((None, 0, "no diagnostics: "), ("none", 2, "w: metadata `diagnostics`: expected")):
        save_weights(tmp_path / "w", replace(file, meta=replace(file.meta, diagnostics=text)), force=True)
        done = run("inspect", tmp_path / "w")
        assert done.status == status
        assert words in done.out + done.err


def test_weights_learned_from_rows_of_one_token_are_those_of_the_rows_that_are_asked_for(
    run: Run, single_tokens: Path, tmp_path: Path
) -> None:
    reader = CacheReader(single_tokens)
    derived = [derive_rows(rows, reader.meta, TOP_K, ROW_TOKENS) for rows in reader.rows()]
    cache = write_cache(tmp_path / "cache", derived, fingerprint=reader.meta.model_fingerprint)
    assert run("calibrate", "--from-cache", cache, "--out", tmp_path / "w").status == 0
    asked = ["calibrate", "--from-cache", single_tokens, "--out"]
    done = run(*asked, tmp_path / "same", "--row-tokens", ROW_TOKENS)
    assert done.status == 0
    assert "note: " not in done.err
    first, second = load_weights(tmp_path / "same"), load_weights(tmp_path / "w")
    assert (first.meta.top_k, first.meta.row_tokens) == (TOP_K, ROW_TOKENS)
    assert (first.keys == second.keys).all()
    assert (first.weights == second.weights).all()
    done = run(*asked, tmp_path / "single-w")
    assert done.status == 0
    assert "has rows of 1 token, which are recorded to make longer ones of them" in done.err
    assert load_weights(tmp_path / "single-w").meta.row_tokens == 1
    assert run(*asked, tmp_path / "fewer", "--row-tokens", ROW_TOKENS, "--top-k", 5).status == 0
    assert load_weights(tmp_path / "fewer").meta.top_k == 5
    refused(run(*asked, tmp_path / "more", "--top-k", TOP_K + 1), f"top_k {TOP_K + 1} does not follow from", "--top-k")
    refused(
        run("calibrate", "--from-cache", cache, "--out", tmp_path / "more", "--row-tokens", 12),
        f"row_tokens 12 does not follow from {cache}",
    )
    assert not (tmp_path / "more").exists()


def test_order_of_the_responses_does_not_change_a_byte_of_the_weights(run: Run, tmp_path: Path) -> None:
    responses = [recorded_rows(f"r{n}", n) for n in range(NUM_PROMPTS)]
    weights = []
    for number in range(5):
        random.Random(number).shuffle(responses)
        cache = write_cache(tmp_path / f"cache{number}", responses)
        assert run("calibrate", "--from-cache", cache, "--out", tmp_path / f"w{number}").status == 0
        weights.append(content(tmp_path / f"w{number}"))
    assert len(set(weights)) == 1


def test_every_sample_has_an_id_and_a_seed_of_its_own(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    assert run("record", *given, "--cache", tmp_path / "cache", "--samples", 3, "--seed", 100).status == 0
    texts = {response.id: response.text for response in CacheReader(tmp_path / "cache").responses()}
    expected = {f"{line}-{k}": f"text {100 + 3 * (line - 1) + k}" for line in range(1, 13) for k in range(3)}
    assert texts == expected
    assert fake.last.most_under_way == 4, "a bounded number is in flight"


def test_interrupted_recording_keeps_what_had_ended_and_goes_on(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    cache, undisturbed = tmp_path / "cache", tmp_path / "undisturbed"
    # Not the default where the tests run in a shell's background, which ignores the signal.
    handler_before = signal.getsignal(signal.SIGINT)
    fake.interrupt_after = 5
    arguments = ["record", *given, "--cache", cache]
    done = run(*arguments)
    assert done.status == 130
    assert done.err.splitlines()[-1] == (
        f"error: interrupted: 5 of 12 responses are kept in {cache}; to record the other 7, run: "
        f"{shlex.join(['nex-vllm', *map(str, arguments)])}"
    )
    assert fake.last.is_shut_down
    assert len(CacheReader(cache)) == 5
    assert signal.getsignal(signal.SIGINT) is handler_before
    fake.interrupt_after = None
    assert run("record", *given, "--cache", cache).status == 0
    assert fake.last.num_ended == 7
    assert run("record", *given, "--cache", undisturbed).status == 0
    one, other = ({r.id: r for r in CacheReader(path).responses()} for path in (cache, undisturbed))
    assert one == other
    for path in (cache, undisturbed):
        assert run("calibrate", "--from-cache", path, "--out", path.with_suffix(".w")).status == 0
    assert content(cache.with_suffix(".w")) == content(undisturbed.with_suffix(".w"))


def test_interrupted_before_anything_ended_leaves_nothing(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeSession, "__init__", interrupted)
    done = run("record", *given, "--cache", tmp_path / "cache")
    assert done.status == 130
    assert "nothing is kept" in done.err.splitlines()[-1]
    assert run("calibrate", *given, "--out", tmp_path / "w").status == 130
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_interrupted_calibration_without_a_cache_says_that_nothing_is_kept(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    fake.interrupt_after = 5
    done = run("calibrate", *given, "--out", tmp_path / "w")
    assert done.status == 130
    assert "nothing is kept; with --cache DIR" in done.err.splitlines()[-1]
    assert not (tmp_path / "w").exists()


def test_prompt_too_long_for_the_context_is_named_before_anything_is_sampled(
    run: Run, fake: type[FakeSession], model: Path, tmp_path: Path
) -> None:
    prompts = write_lines(tmp_path / "p.jsonl", [{"prompt": "fits"}, {"prompt": "x" * 1000}])
    done = run("record", model, "--prompts", prompts, *FLAGS, "--cache", tmp_path / "cache")
    assert done.status == 2
    assert f"{prompts}:2: the prompt has 1000 tokens, expected 1 to 999" in done.err
    assert not (tmp_path / "cache").exists()


def test_refused_request_does_not_stop_the_others() -> None:
    ended = list(FakeSession().run([requested([1]), requested([13]), requested([2])]))
    assert sorted(end.refusal or "ended" for end in ended) == ["ended", "ended", "no 13 please"]


@pytest.mark.parametrize(("num_rows", "reason"), [(3, "no response has a cycle"), (9, "no weights: ")])
def test_responses_without_evidence_write_no_weights(run: Run, tmp_path: Path, num_rows: int, reason: str) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1, num_rows), recorded_rows("b", 2, 2)])
    done = run("calibrate", "--from-cache", cache, "--out", tmp_path / "w", "--rho", "0.001")
    assert done.status == 1
    assert reason in done.err
    assert f"the longest of 2 responses has {num_rows} rows of 8 tokens" in done.err
    assert "give a --rho nearer to 0.95, record again with a smaller --row-tokens" in done.err
    assert done.out == ""
    assert not (tmp_path / "w").exists()


def test_report_lays_the_summary_beside_the_papers_numbers(run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(f"r{n}", n) for n in range(3)])
    done = run("calibrate", "--from-cache", cache, "--out", tmp_path / "w", "--credit", "all_active")
    assert done.status == 0
    lines = done.out.splitlines()
    for words in (["responses", "3"], ["rows of 8 tokens", "120"], ["E rows", "0.277"], ["X rows", "0.177"], ["0.43"]):
        assert any(all(word in line for word in words) for line in lines), words
    assert max(map(len, lines)) <= 100
    assert load_weights(tmp_path / "w").meta.credit == "all_active"


def test_inspect_says_what_is_in_weights_and_cache(run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(f"r{n}", n) for n in range(3)])
    assert run("calibrate", "--from-cache", cache, "--out", tmp_path / "w").status == 0
    lines = run("inspect", tmp_path / "w").out.splitlines()
    file = load_weights(tmp_path / "w")
    assert lines[1].startswith(f"for the model a model (fingerprint {'0' * 32}); ")
    assert "--nex-accept-other-model" in lines[1]
    for words in ("credit introduced", f"with a weight {len(file.keys)} ", "row_tokens 8", "num_responses 3"):
        assert words in " ".join(" ".join(lines).split()), words
    assert ["0", str(int((file.keys < 1 << 16).sum()))] in [line.split()[:2] for line in lines]
    done = run("inspect", cache)
    assert done.status == 0
    words = " ".join(done.out.split())
    for expected in (
        *("listed responses 3", "ended by stop 3", "responses with rows 3"),
        *("rows of 8 tokens 120", "top_k 24", "tokens 960"),
    ):
        assert expected in words, expected
    assert "3/3" in done.err, "a progress bar"


def test_interrupted_learning_gives_the_command_to_paste(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration.Learner, "learn", interrupted)
    cache = write_cache(tmp_path / "my  cache", [recorded_rows("a", 1)])
    arguments = ["calibrate", "--from-cache", str(cache), "--out", str(tmp_path / "it's"), "--min-run", "3"]
    done = run(*arguments)
    assert done.status == 130
    advice = done.err.splitlines()[-1].split(", run: ")[1]
    assert shlex.split(advice) == ["nex-vllm", *arguments]


@pytest.fixture
def default_ctrl_c() -> Iterator[None]:
    """Restore Python's own handler, which a shell's background job lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_ctrl_c")
def test_ctrl_c_that_a_library_turned_into_another_error_is_still_ctrl_c(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: object, **settings: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("the engine did not start") from None

    monkeypatch.setattr(FakeSession, "__init__", start)
    done = run("record", *given, "--cache", tmp_path / "cache")
    assert done.status == 130
    assert done.err.startswith("error: interrupted: nothing is written; to start over, run: nex-vllm record ")


def test_top_k_that_keeps_a_large_share_of_a_small_model_is_warned_of(
    run: Run, fake: type[FakeSession], given: list[object], tmp_path: Path
) -> None:
    assert "--top-k" not in run("record", *given, "--cache", tmp_path / "small").err
    done = run("record", *given, "--cache", tmp_path / "large", "--top-k", "2000")
    assert done.err.splitlines()[0].startswith("warning: --top-k 2000 keeps 48.8 % of the 4096 neurons")
