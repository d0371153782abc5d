"""A process that says whether two answers are mathematically equal; `math_equality` runs it as a script.

It reads a JSON array [right answer, given answer] a line and answers each with ``true`` or ``false``; with null for the
given one, it says whether the right one can be read. A comparison that
takes more processor time than the first argument says, in seconds, ends the process: the kernel does, which needs no
Python code to run. Memory is limited too, for an answer may be 9^9^9^9.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer line by line until the input ends."""
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        expected, given = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            gold = parse(f"\\boxed{{{expected}}}", parsing_timeout=None)
            if given is None:
                equal = bool(gold)
            else:
                found = parse(f"\\boxed{{{given}}}", parsing_timeout=None)
                equal = bool(gold) and verify(gold, found, timeout_seconds=None)
        except Exception:  # whatever an expression provokes in a parser; it is no right answer
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(f"{json.dumps(bool(equal))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
