"""Real servers on loopback, started by the real command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from nex_vllm.storage import SelectorFile, save_selector
from tests.plugin.conftest import ROW_TOKENS, prompts, random_model, shipped_weights  # noqa: F401 - fixtures

VLLM = Path(sys.executable).parent / "vllm"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serve(model: Path, *flags: str, plugins: str | None = None, log: Path) -> Iterator[str]:
    """Run `vllm serve MODEL FLAGS` until the block ends; give its address."""
    port = _free_port()
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
    environment.pop("VLLM_PLUGINS", None)
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    command = [
        str(VLLM), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "countdown",
        "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16", "--enforce-eager", *flags,
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait_until_up(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], address: str, log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{address}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not come up:\n{log.read_text()[-3000:]}")


LEARNED = {"entropy": -1.0, "votes": 0.5, "deepconf_tail": 0.25}
WINDOW = 16


@pytest.fixture(scope="session")
def nex_server(shipped_model: Path, shipped_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """A server with NEX, weights, and everything else that there is to choose by."""
    folder = tmp_path_factory.mktemp("nex-server")
    save_selector(
        folder / "selector.json", SelectorFile(list(LEARNED), LEARNED, ROW_TOKENS, WINDOW, extract="last_number")
    )
    flags = ["--plugin", "nex", "--nex-weights", str(shipped_weights), "--nex-selector", str(folder / "selector.json")]
    flags += ["--nex-extract", "last_number", "--nex-deepconf-window", str(WINDOW)]
    with serve(shipped_model, *flags, log=folder / "log") as address:
        yield address


@pytest.fixture(scope="module")
def record_only_server(shipped_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with NEX, but without weights."""
    log = tmp_path_factory.mktemp("record-only-server") / "log"
    with serve(shipped_model, "--plugin", "nex", log=log) as address:
        yield address
