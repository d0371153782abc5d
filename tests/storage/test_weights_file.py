"""An output is there whole or not at all; a weights file comes back as it was saved, or is refused in one sentence."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from storage_cases import ALL_KEYS, NUM_LAYERS, WEIGHTS_META, WIDTH, make_weights
from storage_checks import assert_refused, assert_same, full_disk, put

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import WeightsFile, atomic_output, check_fits, check_writable_output, load_weights, save_weights

STRINGS = {"format": "nex-weights/1", **{name: str(v) for name, v in dataclasses.asdict(WEIGHTS_META).items()}}
FOREIGN = STRINGS | {"created_with": "another program"}
KEYS, WEIGHTS = make_weights(5).keys, make_weights(5).weights


def _write(path: Path, tensors: dict[str, Any] | None = None, **changes: str | None) -> Path:
    """A file as another program would write it to the contract: no sha256."""
    strings = {name: value for name, value in (FOREIGN | changes).items() if value is not None}
    path.write_bytes(save({"keys": KEYS, "weights": WEIGHTS} if tensors is None else tensors, strings))
    return path


def _digest(strings: dict[str, str], keys: Any = KEYS, weights: Any = WEIGHTS) -> str:
    """The recipe of docs/contracts.md, by hand."""
    text = json.dumps(dict(sorted(strings.items())))
    return hashlib.sha256(text.encode() + keys.tobytes() + weights.tobytes()).hexdigest()


def test_file_is_forced_to_disk_before_and_after_it_takes_its_name(tmp_path: Path) -> None:
    """It has the user's permissions. Some file systems cannot sync a directory and say so, which is no failure."""
    events, path = [], tmp_path / "out"
    path.write_bytes(b"old")

    def fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("directory" if is_directory else "file", path.read_bytes()))
        if is_directory:
            raise OSError(errno.EINVAL, "Invalid argument")

    before = os.umask(0o027)
    try:
        with mock.patch("os.fsync", fsync), atomic_output(path) as handle:
            handle.write(b"new")
    finally:
        os.umask(before)
    assert events == [("file", b"old"), ("directory", b"new")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    def write(interrupt: bool = False) -> None:
        with atomic_output(tmp_path / "out") as handle:
            handle.write(b"new")
            assert len(list(tmp_path.iterdir())) == 2
            if interrupt:
                raise KeyboardInterrupt

    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write(interrupt=True)
    no_rename = mock.patch.object(Path, "replace", side_effect=OSError(errno.ENOSPC, "No space left on device"))
    for failing in (full_disk(), no_rename):
        with failing, pytest.raises(NexError, match=r"out could not be written \(No space left on device\)") as caught:
            write()
        assert not isinstance(caught.value, InputError)
        assert (tmp_path / "out").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_that_could_not_be_written_or_is_its_own_source_is_refused(tmp_path: Path) -> None:
    """The usual mistakes are in the commands' tests."""
    cache = tmp_path / "cache"
    cache.mkdir()
    meta, link, hard = cache / "meta.json", tmp_path / "link", tmp_path / "hard"
    meta.write_bytes(b"old")
    link.symlink_to(cache)
    hard.hardlink_to(meta)
    check_writable_output(tmp_path / "new")
    check_writable_output(meta, force=True, source=tmp_path / "elsewhere")
    check_writable_output(tmp_path / "cache.safetensors", source=cache)
    before = sorted(tmp_path.rglob("*"))
    cases: list[tuple[Path | str, bool, str]] = [
        (cache, True, f"{cache} is a directory"),
        ("/dev/null", True, "/dev/null is not a file"),
        (tmp_path / ("n" * 250), False, "File name too long"),
        (tmp_path / "a\0b", False, "embedded null"),
        ("", False, "the output is '', expected a file"),
    ]
    for path, force, words in cases:
        assert_refused(words, check_writable_output, path, force)
    roundabout = tmp_path / "beside" / ".." / "cache" / "out"
    sources = [(meta, cache), (link / "out", cache), (roundabout, cache), (cache / "out", link), (hard, meta)]
    for path, source in sources:
        assert_refused("which is read; give a path outside of what is read", check_writable_output, path, True, source)
    assert meta.read_bytes() == b"old"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("count", [0, 1, 40, ALL_KEYS.size])
def test_saved_file_is_what_the_contract_says_and_comes_back(tmp_path: Path, count: int) -> None:
    whole = make_weights(count)
    saved = WeightsFile(whole.keys[::2], whole.weights[::2], WEIGHTS_META)  # views are saved by value
    save_weights(tmp_path / "w", saved)
    with safe_open(tmp_path / "w", framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("keys", "weights")}
    assert metadata == STRINGS | {"sha256": _digest(STRINGS, saved.keys, saved.weights)}
    for found in (load_weights(tmp_path / "w"), WeightsFile(**tensors, meta=WEIGHTS_META)):
        assert_same(found, saved)
        assert (found.keys.dtype, found.weights.dtype) == (np.uint32, np.float32)


def test_file_of_another_program_is_read_and_entries_nobody_knows_are_ignored(tmp_path: Path) -> None:
    loaded = load_weights(_write(tmp_path / "w", rho="0.9"))
    assert loaded.meta == dataclasses.replace(WEIGHTS_META, rho=0.9, created_with="another program")
    earlier = load_weights(_write(tmp_path / "w", part=None, reasoning_end=None)).meta
    assert (earlier.part, earlier.reasoning_end) == ("all", "")
    extra = STRINGS | {"note": "by hand"}
    for changes in (
        {"note": "by hand"},
        extra | {"sha256": _digest(extra)},  # a later version, whose digest covers what it knows
        extra | {"sha256": _digest(STRINGS)},  # ours, and another program added an entry
    ):
        np.testing.assert_array_equal(load_weights(_write(tmp_path / "w", **changes)).weights, WEIGHTS)


def test_damage_is_found_where_it_hits_the_name_of_the_digest_too(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights(40))
    damaged = (tmp_path / "w").read_bytes()[:-4] + bytes(4)  # the last weight, now 0
    renamed = damaged.replace(b'"sha256"', b'"sha2 6"')
    disguised = renamed.replace(b'"nex-vllm 1', b'"nex-fllm 1')
    assert len({damaged, renamed, disguised}) == 3
    for content in (damaged, renamed, disguised):
        words = "was changed or damaged after it was written .its sha256 differs or is gone"
        assert_refused(words, load_weights, put(tmp_path / "w", content))


def test_existing_file_is_replaced_only_with_force_and_kept_when_saving_fails(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights(3))
    assert_refused("w already exists.*--force", save_weights, tmp_path / "w", make_weights(4))
    with full_disk(), pytest.raises(NexError, match="No space left"):
        save_weights(tmp_path / "w", make_weights(4), force=True)
    assert load_weights(tmp_path / "w").keys.size == 3
    save_weights(tmp_path / "w", make_weights(4), force=True)
    assert load_weights(tmp_path / "w").keys.size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_bad_content_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    cases: list[tuple[list[int], list[Any], str]] = [
        ([3, 2], [0, 0], "has keys that are not strictly ascending"),
        ([NUM_LAYERS << 16], [0], f"a key of layer {NUM_LAYERS}, but the model has {NUM_LAYERS} layers"),
        ([WIDTH, 1 << 16], [0, 0], f"a key of unit {WIDTH}, but a layer has {WIDTH} units"),
        ([1, 2], [0, np.nan], "a weight nan, expected -1 to 1"),
        ([1, 2], [np.nextafter(np.float32(-1), np.float32(-2)), 0], "a weight -1.0"),
    ]
    for keys, weights, words in cases:
        tensors = {"keys": np.array(keys, np.uint32), "weights": np.array(weights, np.float32)}
        file = WeightsFile(**tensors, meta=WEIGHTS_META)
        assert_refused(f"the weights for .*{words}", save_weights, tmp_path / "saved", file)
        assert_refused(f"w has {words.removeprefix('has ')}", load_weights, _write(tmp_path / "w", tensors))
    file = WeightsFile(KEYS, WEIGHTS, dataclasses.replace(WEIGHTS_META, rho=1.0))
    assert_refused("the weights for .*`rho`: expected `float` < 1.0", save_weights, tmp_path / "saved", file)
    assert not (tmp_path / "saved").exists()


def test_file_that_breaks_the_format_is_refused(tmp_path: Path) -> None:
    both = {"keys": KEYS, "weights": WEIGHTS}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tensors": both | {"weights": WEIGHTS[:-1]}}, r"keys are uint32 \[5\] and weights float32 \[4\]"),
        ({"tensors": both | {"keys": KEYS[:, None]}}, r"keys are uint32 \[5, 1\]"),
        ({"tensors": both | {"keys": KEYS.astype(np.int64)}}, r"keys are int64 \[5\]"),
        ({"tensors": both | {"weights": WEIGHTS.astype(np.float64)}}, r"weights float64 \[5\]"),
        ({"tensors": {"keys": KEYS}}, r"holds the tensors \['keys'\], expected 'keys' and 'weights'"),
        ({"format": None}, "is not a nex-vllm weights file: its format is None"),
        ({"format": "nex-weights/2"}, "has format 'nex-weights/2', .*upgrade nex-vllm"),
        ({"top_k": None}, "missing required field `top_k`"),
        ({"top_k": "many"}, "`top_k`: expected `int`, got `str`"),
        ({"num_layers": "1025"}, "`num_layers`: expected `int` <= 1024"),
        ({"rho": "nan"}, "`rho`: expected `float` > 0.0"),
        ({"num_layers": "1", "intermediate_size": "4"}, "a key of layer 3, but the model has 1 layers"),
        ({"sha256": "0" * 64}, "was changed or damaged after it was written"),
        ({"created_with": "nex-vllm 9"}, "its sha256 differs or is gone"),
        ({"part": "thinking"}, "`part`: invalid enum value 'thinking'"),
        ({"part": "reasoning"}, "part is 'reasoning', but reasoning_end is ''"),
        ({"reasoning_end": "</think>"}, "part is 'all', but reasoning_end is '</think>'"),
    ]
    for changes, words in cases:
        assert_refused(f"^{tmp_path}/w.*{words}", load_weights, _write(tmp_path / "w", **changes))


def test_hostile_header_every_truncation_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "U32", "shape": [10], "data_offsets": [0, 40]}
    sound = {"__metadata__": FOREIGN, "keys": entry, "weights": entry | {"data_offsets": [40, 80]}}
    headers: list[object] = [
        [],
        sound | {"__metadata__": FOREIGN | {"top_k": 7}},
        sound | {"keys": entry | {"shape": [1 << 60]}},
        sound | {"keys": entry | {"shape": [-1]}},
        sound | {"weights": entry},  # both tensors at the same place
        sound | {"keys": None},
        sound | {"keys": entry | {"dtype": "BF16", "shape": [20]}},  # which numpy does not have
        sound | {"keys": entry | {"dtype": "F8_E4M3", "shape": [40]}},
    ]
    texts = [b"[" * 100_000, b"\xff\xfe", b" " * (1 << 21), *(json.dumps(header).encode() for header in headers)]
    whole = save({"keys": KEYS, "weights": WEIGHTS}, FOREIGN)
    contents = [
        *(len(text).to_bytes(8, "little") + text + bytes(80) for text in texts),
        ((1 << 64) - 1).to_bytes(8, "little") + b"{}",
        *(whole[:length] for length in range(len(whole))),
        whole + b"\0",
    ]
    for content in contents:
        assert_refused("is not a sound safetensors file", load_weights, put(tmp_path / "w", content))
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)  # takes no place on disk
    assert_refused("has 1099511627776 bytes, but a nex-vllm weights file has", load_weights, tmp_path / "huge")
    assert_refused("cannot be read .No such file .*; give the path of a nex-vllm", load_weights, tmp_path / "none")
    assert_refused("is a directory, expected a nex-vllm weights file", load_weights, tmp_path)
    assert_refused("is not a regular file", load_weights, "/dev/zero")


def test_weights_fit_what_is_served_or_are_refused_with_both_values() -> None:
    """Other layers, top_k and models, and a sibling's weights when asked for, are in the plugin's tests."""
    served = dataclasses.asdict(WEIGHTS_META)
    served = {name: served[name] for name in ("model_fingerprint", "num_layers", "intermediate_size", "top_k")}
    assert not check_fits(make_weights(), **served)
    assert not check_fits(make_weights(), **served, row_tokens=8)
    assert check_fits(make_weights(), **served | {"model_fingerprint": "e" * 32}, accept_other_model=True)
    words = (
        "w was calibrated on 'tiny' with row_tokens 8, but what is served has row_tokens 32; set --nex-row-tokens to 8"
    )
    assert_refused(words, check_fits, make_weights(), **served, row_tokens=32, source="w")
    reasoning = dataclasses.replace(WEIGHTS_META, part="reasoning", reasoning_end="</think>")
    thinking = WeightsFile(KEYS, WEIGHTS, reasoning)
    assert not check_fits(thinking, **served, part="reasoning", reasoning_end="</think>")
    words = "with row_tokens 8, but what is served has row_tokens 32; calibrate again"
    assert_refused(words, check_fits, make_weights(), **served, row_tokens=32, flags={})
    words = "or give --accept-other-model if it is a fine-tuned"
    other = served | {"model_fingerprint": "e" * 32}
    assert_refused(words, check_fits, make_weights(), **other, flags={"accept_other_model": "--accept-other-model"})
    words = "with part 'reasoning', but what is served has part 'all'; set --nex-part to reasoning"
    assert_refused(words, check_fits, thinking, **served, part="all")
    words = "with part 'all', but what is served has part 'reasoning'"
    assert_refused(words, check_fits, make_weights(), **served, part="reasoning", reasoning_end="</think>")
    words = "with reasoning_end '</think>', but what is served has reasoning_end 'Answer'"
    assert_refused(words, check_fits, thinking, **served, part="reasoning", reasoning_end="Answer")
    words = "with 48 units per layer, but what is served has 49"
    assert_refused(words, check_fits, make_weights(), **served | {"intermediate_size": 49}, accept_other_model=True)
