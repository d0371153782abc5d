"""A process that says whether two answers are mathematically equal; run as a script by `nex_vllm.evaluation.grading`.

It reads a JSON array [right answer, given answer] a line and answers each with ``true`` or ``false``. It has no limits
of time of its own: whoever started it ends it. Its memory is limited, for an answer may be 9^9^9^9.
"""

from __future__ import annotations

import json
import logging
import resource
import sys

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer line by line until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        expected, given = json.loads(line)
        try:
            gold = parse(f"\\boxed{{{expected}}}", parsing_timeout=None)
            found = parse(f"\\boxed{{{given}}}", parsing_timeout=None)
            equal = bool(gold) and verify(gold, found, timeout_seconds=None)
        except Exception:  # whatever an expression provokes in a parser; it is no right answer
            equal = False
        sys.stdout.write(f"{json.dumps(bool(equal))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
