"""A weights file comes back as it was saved, or is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save
from storage_cases import ALL_KEYS, NUM_LAYERS, WEIGHTS_META, WIDTH, make_weights, refusal

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import WeightsFile, check_fits, load_weights, save_weights

STRINGS = {"format": "nex-weights/1", **{name: str(v) for name, v in dataclasses.asdict(WEIGHTS_META).items()}}
KEYS, WEIGHTS = make_weights(5).keys, make_weights(5).weights


def _foreign(path: Path, tensors: dict[str, Any] | None = None, **changes: str | None) -> Path:
    """A file as another program would write it to the contract: no sha256."""
    strings = {name: value for name, value in (STRINGS | changes).items() if value is not None}
    path.write_bytes(save({"keys": KEYS, "weights": WEIGHTS} if tensors is None else tensors, strings))
    return path


def _refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}.*{words}") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, 40, ALL_KEYS.size])
def test_saved_weights_come_back(tmp_path: Path, count: int) -> None:
    saved = make_weights(count)
    save_weights(tmp_path / "w", saved)
    loaded = load_weights(tmp_path / "w")
    assert loaded.meta == saved.meta
    assert (loaded.keys.dtype, loaded.weights.dtype) == (np.uint32, np.float32)
    np.testing.assert_array_equal(loaded.keys, saved.keys)
    np.testing.assert_array_equal(loaded.weights, saved.weights)


def test_saved_file_is_what_the_contract_says(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights())
    with safe_open(tmp_path / "w", framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"keys", "weights"}
        assert file.get_tensor("keys").dtype == np.uint32
        assert file.get_tensor("weights").dtype == np.float32
    assert metadata.items() >= STRINGS.items()


def test_file_of_another_program_is_read(tmp_path: Path) -> None:
    loaded = load_weights(_foreign(tmp_path / "w", rho="0.9"))
    assert loaded.meta == dataclasses.replace(WEIGHTS_META, rho=0.9)
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)


def test_entry_that_a_digest_covers_is_kept_out_of_the_way(tmp_path: Path) -> None:
    extra = STRINGS | {"note": "by hand"}
    digest = hashlib.sha256(json.dumps(dict(sorted(extra.items()))).encode() + KEYS.tobytes() + WEIGHTS.tobytes())
    loaded = load_weights(_foreign(tmp_path / "w", note="by hand", sha256=digest.hexdigest()))
    np.testing.assert_array_equal(loaded.weights, WEIGHTS)
    _refused(_foreign(tmp_path / "w", note="by mouth", sha256=digest.hexdigest()), "was changed or damaged")


def test_strided_arrays_are_saved_by_value(tmp_path: Path) -> None:
    wide = make_weights(40)
    save_weights(tmp_path / "w", WeightsFile(wide.keys[::2], wide.weights[::2], WEIGHTS_META))
    np.testing.assert_array_equal(load_weights(tmp_path / "w").keys, wide.keys[::2])


def test_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights(3))
    with pytest.raises(InputError, match=r"w already exists.*--force"):
        save_weights(tmp_path / "w", make_weights(4))
    assert load_weights(tmp_path / "w").keys.size == 3
    save_weights(tmp_path / "w", make_weights(4), force=True)
    assert load_weights(tmp_path / "w").keys.size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_failed_save_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / "w", make_weights(3))

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(NexError, match="No space left"):
            save_weights(tmp_path / "w", make_weights(4), force=True)
    assert load_weights(tmp_path / "w").keys.size == 3
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


BAD_ARRAYS = [
    ([3, 2], [0, 0], "keys are not strictly ascending"),
    ([2, 2], [0, 0], "keys are not strictly ascending"),
    ([NUM_LAYERS << 16], [0], f"names layer {NUM_LAYERS}, but the model has {NUM_LAYERS}"),
    ([WIDTH, 1 << 16], [0, 0], f"names unit {WIDTH}, but a layer has {WIDTH}"),
    ([1, 2], [0, np.nan], "a weight is nan, expected finite numbers from -1 to 1"),
    ([1, 2], [0, np.inf], "a weight is inf"),
    ([1, 2], [np.nextafter(np.float32(-1), np.float32(-2)), 0], "a weight is -1.0"),
]


@pytest.mark.parametrize(("keys", "weights", "words"), BAD_ARRAYS)
def test_bad_content_is_neither_saved_nor_loaded(tmp_path: Path, keys: Any, weights: Any, words: str) -> None:
    arrays = np.array(keys, np.uint32), np.array(weights, np.float32)
    with pytest.raises(InputError, match=words):
        save_weights(tmp_path / "saved", WeightsFile(*arrays, WEIGHTS_META))
    assert not (tmp_path / "saved").exists()
    _refused(_foreign(tmp_path / "w", dict(zip(("keys", "weights"), arrays, strict=True))), words)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"keys": KEYS, "weights": WEIGHTS[:-1]}, "5 keys but 4 weights"),
        ({"keys": KEYS.reshape(5, 1), "weights": WEIGHTS}, r"`keys` has shape \[5, 1\], expected one dimension"),
        ({"keys": KEYS.astype(np.int64), "weights": WEIGHTS}, "`keys` has dtype 'I64', expected U32"),
        ({"keys": KEYS, "weights": WEIGHTS.astype(np.float64)}, "`weights` has dtype 'F64', expected F32"),
        ({"keys": KEYS}, r"holds the tensors \['keys'\], expected 'keys' and 'weights'"),
        ({"keys": KEYS, "weights": WEIGHTS, "more": WEIGHTS}, "holds the tensors"),
    ],
)
def test_tensors_of_another_shape_or_kind_are_refused(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    _refused(_foreign(tmp_path / "w", tensors), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": None}, "is not a nex-vllm weights file: its format is None"),
        ({"format": "pt"}, "is not a nex-vllm weights file: its format is 'pt', expected 'nex-weights/1'"),
        ({"format": "nex-cache/1"}, "is not a nex-vllm weights file"),
        ({"format": "nex-weights/2"}, "has format 'nex-weights/2', .*upgrade nex-vllm"),
        ({"format": "nex-weights/0"}, "has format 'nex-weights/0'"),
        ({"top_k": None}, "lacks the metadata entry `top_k`"),
        ({"top_k": "many"}, "`top_k` is 'many', expected a whole number"),
        ({"top_k": "-5"}, "`top_k` is '-5', expected a whole number"),
        ({"top_k": "0"}, "top_k is 0, expected 1 to"),
        ({"num_layers": "9" * 5000}, "`num_layers` is '999"),
        ({"intermediate_size": "65537"}, "intermediate_size is 65537, expected 1 to 65536"),
        ({"rho": "high"}, "`rho` is 'high', expected a number"),
        ({"rho": "nan"}, "rho is nan, expected a number between 0 and 1"),
        ({"rho": "1"}, "rho is 1.0, expected a number between 0 and 1"),
        ({"num_layers": "1", "intermediate_size": "4"}, "announces 5 weights for a model of 1 layers of 4 units"),
        ({"sha256": "0" * 64}, "was changed or damaged after it was written"),
        ({"sha2 6": "0" * 64}, "has the metadata entry 'sha2 6', which the format does not know, and no sha256"),
    ],
)
def test_metadata_that_breaks_the_format_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    _refused(_foreign(tmp_path / "w", **changes), words)


def test_file_of_a_plain_model_is_refused_as_foreign(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save({"lm_head": WEIGHTS}))
    _refused(tmp_path / "w", "is not a nex-vllm weights file: its format is None")


def _with_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _announcing(count: Any) -> dict[str, Any]:
    entry = {"shape": [count], "data_offsets": [0, 40]}
    return {"__metadata__": STRINGS, "keys": {"dtype": "U32", **entry}, "weights": {"dtype": "F32", **entry}}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"not json", b"", "is not a safetensors file: its header is not a JSON object"),
        (b"[]", b"", "is not a safetensors file"),
        (b"[" * 100_000, b"", "is not a safetensors file"),
        (b"\xff\xfe", b"", "is not a safetensors file"),
        ({"__metadata__": "nex-weights/1"}, b"", "is not a nex-vllm weights file"),
        ({"__metadata__": STRINGS | {"top_k": 7}}, b"", "metadata that is not strings"),
        (b" " * (1 << 21), b"", "announces a header of 2097152 bytes, more than"),
        (_announcing(1 << 60), b"", "announces 1152921504606846976 weights, which take .* but 0 follow"),
        (_announcing(-1), b"", r"`keys` has shape \[-1\]"),
        (_announcing(True), b"", r"`keys` has shape \[True\]"),
        (_announcing(5), b"\0" * 40, "is not a sound safetensors file"),  # both tensors at the same place
        (_announcing(5) | {"keys": None}, b"", "`keys` has dtype None"),
    ],
)
def test_hostile_header_is_refused_before_anything_is_allocated(
    tmp_path: Path, header: object, data: bytes, words: str
) -> None:
    _refused(_with_header(tmp_path / "w", header, data), words)


def test_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(((1 << 64) - 1).to_bytes(8, "little") + b"{}")
    _refused(tmp_path / "w", "10 bytes cannot hold the header it announces; it is cut off")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "whole", make_weights(3))
    data = (tmp_path / "whole").read_bytes()
    for length in range(len(data)):
        (tmp_path / "w").write_bytes(data[:length])
        _refused(tmp_path / "w", "is empty" if length == 0 else "")
    (tmp_path / "w").write_bytes(data + b"\0")
    _refused(tmp_path / "w", "but 25 follow its header")


def test_missing_file_directory_and_device_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "none", "does not exist; give the path of a nex-vllm weights file")
    _refused(tmp_path, "is a directory, expected a nex-vllm weights file")
    _refused(Path("/dev/zero"), "is not a regular file")


def test_damage_that_hits_the_name_of_the_digest_too_is_found(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", make_weights(40))
    data = (tmp_path / "w").read_bytes()
    renamed = data.replace(b'"sha256"', b'"sha2 6"')
    assert renamed != data
    (tmp_path / "w").write_bytes(renamed[:-4] + bytes(4))  # the last weight, now 0
    _refused(tmp_path / "w", "metadata entry 'sha2 6', which the format does not know")


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_file_loads_as_it_was_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    path, saved = tmp_path_factory.getbasetemp() / "fuzz.safetensors", make_weights(40)
    whole = path.with_suffix(".whole")
    if not whole.exists():
        save_weights(whole, saved)
    data = bytearray(whole.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data)
    message = refusal(load_weights, path)
    if message is not None:
        assert str(path) in message
        assert "\n" not in message
    else:
        loaded = load_weights(path)
        np.testing.assert_array_equal(loaded.keys, saved.keys)
        np.testing.assert_array_equal(loaded.weights, saved.weights)
        assert loaded.meta == saved.meta


FIT: dict[str, Any] = {
    "model_fingerprint": "f" * 32,
    "num_layers": NUM_LAYERS,
    "intermediate_size": WIDTH,
    "top_k": 20,
    "row_tokens": 8,
}


def test_weights_fit_the_model_they_were_learned_on() -> None:
    check_fits(make_weights(), **FIT)
    check_fits(make_weights(), **{**FIT, "row_tokens": None})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_layers", 28, "w.safetensors is for a model with 4 layers .*, but the model being served has 28"),
        ("intermediate_size", 49, "with 48 units per layer .*has 49"),
        ("model_fingerprint", "e" * 32, f"fingerprint '{'f' * 32}', but .* has fingerprint '{'e' * 32}'"),
        ("top_k", 2000, "with top_k 20, but top_k is set to 2000; set top_k to 20"),
        ("row_tokens", 32, "with row_tokens 8, but row_tokens is set to 32"),
    ],
)
def test_misfit_is_refused_with_both_values(name: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_fits(make_weights(), **{**FIT, name: value}, source="w.safetensors")
