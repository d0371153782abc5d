"""Mathematical equality of answers by the library math-verify, in a process of its own.

The library bounds its time by signals, which do not interrupt a long computation in C, and work in the main thread
only. A process can always be ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from nex_vllm.errors import InputError, NexError

SECONDS = 10.0
_PATIENCE = 300.0
"""Seconds in which the process must start, or end a comparison on a machine that is busy with other things."""
_WORKER = Path(__file__).with_name("math_worker.py")


class MathEquality:
    """Says whether answers are mathematically equal; a context manager that ends its process.

    Args:
        seconds: processor time that one comparison may take; after that the answer counts as another one.

    ``num_ended`` counts comparisons that took longer, or ended the process by what they needed.

    Raises:
        InputError: math-verify is not installed.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise InputError(
                "the grader `math` needs the package math-verify, which is not installed; run `pip install "
                "'nex-vllm[math]'`, or give another --grader"
            )
        self.seconds = seconds
        self.num_ended = 0
        self._known: dict[tuple[str, str | None], bool] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Return itself; the process starts with the first comparison."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the process."""
        self._end()

    def equal(self, expected: str, given: str) -> bool:
        """Say whether an answer equals the right one.

        Raises:
            NexError: the process does not start.
        """
        return self._answer((expected, given))

    def readable(self, expected: str) -> bool:
        """Say whether a right answer can be read, so that there is something to be equal to.

        Raises:
            NexError: the process does not start.
        """
        return self._answer((expected, None))

    def _answer(self, pair: tuple[str, str | None]) -> bool:
        if pair not in self._known:
            self._known[pair] = self._ask(pair)
        return self._known[pair]

    def _ask(self, pair: tuple[str, str | None]) -> bool:
        process = self._process if self._process is not None else self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{json.dumps(pair)}\n".encode())
            process.stdin.flush()
            reply = _line(process, self.seconds + _PATIENCE)
        except BrokenPipeError:
            reply = None
        if reply is None:
            self.num_ended += 1
            self._end()
        return reply == "true"

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the files beside the script are none of its modules.
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-P", str(_WORKER), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the program that waits for it
        )
        if _line(self._process, _PATIENCE) != "ready":
            self._end()
            raise NexError("math-verify could not be loaded; reinstall it, or give another --grader")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None


def _line(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """Return the next line of a process; None where it ends before, or takes longer."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
    # A line is written at once, so what has begun ends.
    line = process.stdout.readline() if ready else b""
    return line.decode().strip() if line.endswith(b"\n") else None
