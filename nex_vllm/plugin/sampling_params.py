"""Let ``vllm.SamplingParams`` accept the NEX keywords, without importing vLLM for it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_OURS = "nex_vllm.plugin.params:SamplingParams"


def use_in_vllm() -> None:
    """Make ``vllm.SamplingParams`` ours, now if vLLM is imported, else as soon as it is."""
    vllm = sys.modules.get("vllm")
    if vllm is not None:
        _redirect(vllm)
    else:
        sys.meta_path.insert(0, _WatchForVllm())


def _redirect(vllm: ModuleType) -> None:
    # vLLM's top level resolves its names when they are asked for, from this table.
    vllm.MODULE_ATTRS["SamplingParams"] = _OURS


class _WatchForVllm(importlib.abc.MetaPathFinder):
    """Finds ``vllm`` as Python would, and redirects the name once the module has been executed."""

    def __init__(self) -> None:
        self._looking = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the interface's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "vllm" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RedirectingLoader(spec.loader, self)
        return spec


class _RedirectingLoader(importlib.abc.Loader):
    def __init__(self, plain: importlib.abc.Loader, finder: _WatchForVllm) -> None:
        self._plain = plain
        self._finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._plain.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._plain
        self._plain.exec_module(module)
        _redirect(module)
        # Not earlier: libraries ask for vLLM's spec, to know whether it is installed, without importing it.
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
