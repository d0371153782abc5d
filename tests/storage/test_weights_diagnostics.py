"""Diagnostics in a weights file, and the prompt of a cached response: files of earlier versions lack both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors.numpy import save
from storage_cases import CACHE_META, make_response, make_rows, make_weights
from storage_checks import assert_refused

from nex_vllm.storage import (
    CacheReader,
    CacheWriter,
    Diagnostics,
    WeightsFile,
    decode_diagnostics,
    load_weights,
    save_weights,
)

DIAGNOSTICS = Diagnostics(num_prompts=3, score_spread=5e-4, warnings=('late_bad_mass is 0.70, "above" 0.5',))


def test_diagnostics_come_back_and_are_covered_by_the_digest(tmp_path: Path) -> None:
    plain = make_weights(5)
    saved = WeightsFile(plain.keys, plain.weights, dataclasses.replace(plain.meta, diagnostics=DIAGNOSTICS.encode()))
    save_weights(tmp_path / "w", saved)
    loaded = load_weights(tmp_path / "w").meta.diagnostics
    assert loaded is not None
    assert decode_diagnostics(loaded, "w") == DIAGNOSTICS
    data = (tmp_path / "w").read_bytes()
    assert data.count(b"0.0005") == 1
    (tmp_path / "w").write_bytes(data.replace(b"0.0005", b"0.0009"))
    assert_refused("was changed or damaged", load_weights, tmp_path / "w")


def test_weights_without_diagnostics_are_written_and_read(tmp_path: Path) -> None:
    plain = make_weights(5)
    without = dataclasses.replace(plain.meta, diagnostics=None)
    save_weights(tmp_path / "w", WeightsFile(plain.keys, plain.weights, without))
    assert b"diagnostics" not in (tmp_path / "w").read_bytes()
    assert load_weights(tmp_path / "w").meta == without
    strings = {name: str(value) for name, value in dataclasses.asdict(without).items() if value is not None}
    foreign = {**strings, "format": "nex-weights/1", "created_with": "another program"}
    (tmp_path / "foreign").write_bytes(save({"keys": plain.keys, "weights": plain.weights}, foreign))
    assert load_weights(tmp_path / "foreign").meta.diagnostics is None


def test_prompt_of_a_response_is_kept_and_may_be_missing(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "cache", CACHE_META) as writer:
        writer.add(dataclasses.replace(make_response("a"), prompt_id="the prompt"), make_rows("a"))
        writer.add(make_response("b"), make_rows("b"))
    path = tmp_path / "cache" / "responses.jsonl"
    # A line without the member and without a sha256 is only taken beside shards of another program.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["prompt_id"] for line in lines] == ["the prompt", None]
    found = {response.id: response.prompt_id for response in CacheReader(tmp_path / "cache").responses()}
    assert found == {"a": "the prompt", "b": None}
    for line in lines:
        del line["prompt_id"], line["sha256"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (shard,) = (tmp_path / "cache").glob("rows-*.parquet")
    shard.rename(shard.with_name("rows-0.parquet"))
    assert [response.prompt_id for response in CacheReader(tmp_path / "cache").responses()] == [None, None]
