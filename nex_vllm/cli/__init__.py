"""The command line: thin, the other packages do the work.

Importing it loads neither torch nor vLLM nor scikit-learn: ``--help`` and every refusal that needs none of them are
immediate.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``nex-vllm`` on these arguments (the process's own by default) and end the process with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from nex_vllm.cli.app import app
        from nex_vllm.cli.outcome import exit_status

        status = exit_status(app, given)
    except KeyboardInterrupt:  # while the modules above were being imported
        sys.stderr.write("error: interrupted before anything was done\n")
        status = 130
    # All is said and written. Ctrl-C while the interpreter shuts down ends the process at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)
