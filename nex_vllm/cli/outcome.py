"""How a command ends: one sentence on stderr and an exit status, whatever happened."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from nex_vllm.errors import InputError, NexError

OK, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

COMMANDS = ("calibrate", "record", "score", "compare", "fit", "sweep", "inspect", "report", "demo")

DEBUG_VARIABLE = "NEX_VLLM_TRACEBACK"
"""Set to anything, it lets an unexpected error through with its traceback."""


class InterruptedRunError(Exception):
    """The user pressed Ctrl-C; `exit_status` adds the command that was given, to be run again.

    Args:
        kept: what is left of the work, after "interrupted".
        purpose: what the same command does next, as in "to record the other 7".
    """

    def __init__(self, kept: str = "nothing is kept", purpose: str = "to start over") -> None:
        super().__init__(kept, purpose)
        self.kept = kept
        self.purpose = purpose


def exit_status(app: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Run a typer application and turn whatever ends it into an exit status, with one sentence on stderr.

    Args:
        app: the application.
        arguments: without the program's name.
    """
    with _safe_interrupt(arguments) as pressed:
        try:
            status = app(args=list(arguments), prog_name="nex-vllm", standalone_mode=False)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except InterruptedRunError as error:
            return _interrupted(error, arguments)
        except BrokenPipeError:
            # The reader (`| head`) has gone; what stdout still holds must not be flushed into the broken pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILURE
        except Exception as error:
            if pressed.is_set():  # some library has turned the interrupt into an error of its own
                return _interrupted(InterruptedRunError("nothing is written"), arguments)
            sentence, status = _described(error, arguments)
            sys.stderr.write(f"error: {' '.join(sentence.split())}\n")
            return status
    # Typer turns a KeyboardInterrupt that no command has caught into this status.
    if status == INTERRUPTED:
        return _interrupted(InterruptedRunError("nothing is written"), arguments)
    return status if isinstance(status, int) else OK


_undo: list[Callable[[], None]] = []


@contextlib.contextmanager
def undone_when_interrupted(action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` where Ctrl-C ends the process within this block without an exception, during an import."""
    _undo.append(action)
    try:
        yield
    finally:
        _undo.remove(action)


@contextlib.contextmanager
def _safe_interrupt(arguments: Sequence[str]) -> Iterator[threading.Event]:
    """Let Ctrl-C raise KeyboardInterrupt, but end the process during an import; the event says that it was pressed.

    Modules written in C and C++ swallow an exception that arrives while they are imported, turn it into another one, or
    abort the process; and importing vLLM takes too long to wait for its end.
    """
    pressed = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return

    def interrupt(_signum: int, frame: FrameType | None) -> None:
        pressed.set()
        if not _is_importing(frame):
            raise KeyboardInterrupt
        for action in reversed(_undo):
            action()
        status = _interrupted(InterruptedRunError("the program was still being loaded"), arguments)
        sys.stderr.flush()
        os._exit(status)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _interrupted(error: InterruptedRunError, arguments: Sequence[str]) -> int:
    # The command is quoted, not reworded: it must do the same when it is pasted into a shell.
    command = shlex.join(["nex-vllm", *arguments])
    sys.stderr.write(f"error: interrupted: {' '.join(error.kept.split())}; {error.purpose}, run: {command}\n")
    return INTERRUPTED


def _described(error: Exception, arguments: Sequence[str]) -> tuple[str, int]:
    """Return what to say about an error and the exit status that goes with it."""
    for kind, status in ((InputError, BAD_INPUT), (NexError, FAILURE)):
        if isinstance(error, kind):
            return str(error), status
    # Typer's own complaints about flags; recognised by their method, since older versions take click's class.
    if hasattr(error, "format_message"):
        return f"{error.format_message().rstrip('.')}; see `{_help_of(arguments)}`", BAD_INPUT
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    return (
        f"{type(error).__name__}: {error}; this should not happen, set {DEBUG_VARIABLE}=1 and run again for the "
        "traceback to report",
        FAILURE,
    )


def _help_of(arguments: Sequence[str]) -> str:
    first = arguments[0] if arguments else ""
    return f"nex-vllm {first} --help" if first in COMMANDS else "nex-vllm --help"
