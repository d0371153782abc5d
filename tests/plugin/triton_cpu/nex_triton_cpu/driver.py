"""The driver that a Triton backend has to have; it is active, and drives nothing."""

from __future__ import annotations

from typing import Any, NoReturn

from triton.backends.driver import DriverBase


def _refuse(*args: Any) -> NoReturn:
    raise NotImplementedError("this backend has no device: set TRITON_INTERPRET=1")


class InterpretedDriver(DriverBase):
    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_current_target = get_active_torch_device = get_benchmarker = _refuse
