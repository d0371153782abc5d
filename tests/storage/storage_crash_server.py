"""Forks a cache writer for each line of its input and reports how it ended; the writer dies where it is told to.

A line is ``DIRECTORY<tab>LINE<tab>SECONDS``: the writer is killed (SIGKILL) at the LINE-th executed line of the storage
package, or after so many seconds, or lives where both are 0. It reports ``+ID`` when a response is committed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from storage_cases import CACHE_META, add

from nex_vllm.storage import CacheWriter, atomic, cache_writer

RESPONSES = [f"r{number}" for number in range(9)]


def report(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def write(directory: str) -> None:
    with CacheWriter(directory, CACHE_META) as writer:
        known = set()
        for name in RESPONSES:
            if name not in writer.finished:
                add(writer, name)
            for done in sorted(writer.finished - known):
                report(f"+{done}")
            known = set(writer.finished)


def die_at(line: int) -> None:
    package, executed = str(Path(atomic.__file__).parent), 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal executed
        if not frame.f_code.co_filename.startswith(package):
            return None
        executed += event == "line"
        if executed == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def main() -> None:
    cache_writer.COMMIT_RESPONSES = 2
    for command in sys.stdin:
        directory, line, seconds = command.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            if int(line):
                die_at(int(line))
            write(directory)
            os._exit(0)
        if float(seconds):
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)  # here and not in the test: until we wait, the id is nobody else's
        _, status = os.waitpid(child, 0)
        report("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
