"""The map of docs/design.md is true: who imports whom, and what each room can do without."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every edge of the map. `errors` is known to all and left out; `nex_vllm` is the package's own top level.
MAP = {
    "algorithm": (),
    "records": ("algorithm",),
    "kernels": (),
    "storage": ("algorithm",),
    "recording": ("algorithm", "kernels", "records"),
    "choosing": ("algorithm", "records"),
    "serving": ("choosing",),
    "plugin": ("algorithm", "choosing", "records", "recording", "serving", "storage"),
    "evaluation": ("algorithm", "choosing", "storage"),
    "cli": ("algorithm", "evaluation", "nex_vllm", "plugin", "storage"),
    "nex_vllm": ("choosing", "plugin"),
    "nex_vllm_plugin": ("plugin",),
}
EDGES = [(room, other) for room, others in MAP.items() for other in others]

# Packages that only the rooms named here may import, at the top of a file or inside a function.
HOMES = {
    "vllm": {"plugin", "nex_vllm_plugin"},
    "torch": {"kernels", "recording", "plugin"},
    "re2": {"choosing"},
    "triton": {"kernels"},
    "numba": {"kernels"},
    "msgspec": {"storage", "plugin"},
    "sklearn": {"algorithm", "evaluation"},
    "hmmlearn": {"algorithm"},
    "pyarrow": {"storage"},
    "safetensors": {"storage"},
    "typer": {"cli"},
    "jinja2": {"evaluation"},
    "matplotlib": {"evaluation"},
    "tokenizers": {"evaluation"},
}


def _files() -> Iterator[tuple[str, Path]]:
    """Yield every source file with its room."""
    yield "nex_vllm_plugin", ROOT / "nex_vllm_plugin.py"
    for path in sorted((ROOT / "kernels").glob("*.py")):
        yield "kernels", path
    for path in sorted((ROOT / "nex_vllm").rglob("*.py")):
        parts = path.relative_to(ROOT / "nex_vllm").parts
        if parts[0] != "kernels":
            yield ("nex_vllm" if parts == ("__init__.py",) else parts[0].removesuffix(".py")), path


def _imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room_of(name: str) -> str | None:
    """Return the room that an imported name belongs to; None for other people's packages."""
    parts = name.split(".")
    if parts[0] != "nex_vllm":
        return None
    top_level = len(parts) == 1 or parts[1][0].isupper() or parts[1].startswith("__")
    return "nex_vllm" if top_level else parts[1]


def _found_edges() -> set[tuple[str, str]]:
    edges = {(room, _room_of(name)) for room, path in _files() for name in _imported(path)}
    return {(room, other) for room, other in edges if other not in {None, room, "errors"}}  # type: ignore[misc]


@pytest.mark.parametrize(("room", "other"), EDGES, ids=lambda name: name)
def test_the_map_has_this_edge(room: str, other: str) -> None:
    assert (room, other) in _found_edges(), f"{room} no longer imports {other}; take the edge off the map"


def test_there_is_no_other_edge() -> None:
    assert _found_edges() - set(EDGES) == set()


def test_there_is_no_circle() -> None:
    reachable = {room: set(others) for room, others in MAP.items()}
    for _ in MAP:
        for others in reachable.values():
            others.update(*(reachable[other] for other in tuple(others)))
    assert [room for room, others in reachable.items() if room in others] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {_module_name(path): path for _, path in _files()}
    edges = {
        module: {_longest_prefix(name, modules) for name in _imported(path)} - {None, module}
        for module, path in modules.items()
    }
    for _ in modules:
        for others in edges.values():
            others.update(*(edges[other] for other in tuple(others) if other is not None))
    assert [module for module, others in edges.items() if module in others] == []


def _module_name(path: Path) -> str:
    # `kernels` stands beside the package and is imported through it.
    below = path.relative_to(ROOT).with_suffix("")
    parts = ("nex_vllm", *below.parts) if below.parts[0] == "kernels" else below.parts
    return ".".join(parts).removesuffix(".__init__")


def _longest_prefix(name: str, modules: Container[str]) -> str | None:
    """Return the module that an imported name is, or is in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("package", HOMES)
def test_only_its_rooms_import(package: str) -> None:
    rooms = {room for room, path in _files() for name in _imported(path) if name.split(".")[0] == package}
    assert rooms <= HOMES[package]


@pytest.mark.parametrize(
    ("rooms", "missing"),
    [
        (("recording", "choosing"), ("vllm", "pyarrow")),
        (("choosing", "algorithm", "storage"), ("vllm", "torch", "numba", "triton", "pyarrow")),
        (("serving",), ("vllm", "torch", "numba", "triton")),
        (("evaluation",), ("vllm", "torch", "numba", "triton")),
    ],
    ids=str,
)
def test_every_module_works_where_these_are_not_installed(rooms: tuple[str, ...], missing: tuple[str, ...]) -> None:
    modules = [
        _module_name(path)
        for room, path in _files()
        if room in rooms and not (room == "storage" and path.name.startswith(("cache", "shard", "candidates")))
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {missing!r}:\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
