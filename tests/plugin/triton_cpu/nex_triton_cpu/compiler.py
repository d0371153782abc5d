"""The compiler that a Triton backend has to have; nothing asks it to compile."""

from __future__ import annotations

from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend


def _refuse(*args: Any) -> NoReturn:
    raise NotImplementedError("this backend has no compiler: set TRITON_INTERPRET=1")


class InterpretedBackend(BaseBackend):
    supports_target = staticmethod(lambda target: False)
    hash = parse_options = add_stages = load_dialects = get_module_map = _refuse
