"""What every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides once, when it and the kernels are imported, whether they are interpreted (on CPU tensors).
    os.environ["TRITON_INTERPRET"] = "1"
    import nex_vllm.kernels.gpu
    import nex_vllm.kernels.gpu_tap  # noqa: F401

    # Engines that tests start are spared it.
    del os.environ["TRITON_INTERPRET"]

for _name, _value in {
    # Small engines: one GiB of cache, and no chatter between the tests' own lines.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # One thread each, on any core: several run at a time, and vLLM would bind all of them to the same cores.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Functions are sent to workers, to look at what they hold; both ends of the way must allow it.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).parent.parent
LONGEST_FIRST = ("v2", "v1", "server", "tests/cli", "tests/kernels", "tests/serving", "tests/plugin")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let one of pytest-xdist's workers run what shares an engine, a server or a file; mark what is slow on a runner.

    Already here, because pytest-xdist reads the groups before a conftest may change the collected items.
    """
    item.add_marker(pytest.mark.xdist_group(_group_of(item)))
    if any(_runner_of(item) in marker.args for marker in item.iter_markers("slow_on")):
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the groups that take longest first; workers take the next one when they have ended theirs."""

    def place(item: pytest.Item) -> int:
        group = _group_of(item)
        return next((i for i, name in enumerate(LONGEST_FIRST) if group.startswith(name)), len(LONGEST_FIRST))

    items.sort(key=place)


def _group_of(item: pytest.Item) -> str:
    fixtures = getattr(item, "fixturenames", ())
    if "nex_server" in fixtures:
        return "server"
    if "engine" in fixtures or "runner" in fixtures:
        return _runner_of(item)
    return item.nodeid.partition("::")[0]


def _runner_of(item: pytest.Item) -> str:
    """Return the model runner that a test's engine has, if it has one."""
    runner: str = item.callspec.params.get("runner", "v1") if hasattr(item, "callspec") else "v1"
    return runner


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    """Return the folder of the trained model that the repository ships."""
    return ROOT / "examples" / "countdown" / "model"


@pytest.fixture(scope="session")
def countdown() -> Path:
    """Return the folder of the Countdown example."""
    return ROOT / "examples" / "countdown"


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """Undo what a test's program code sets in the environment: the command line chooses how engines run by it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
