"""The command line: thin, the rooms do the work.

Importing it loads neither torch nor vLLM nor scikit-learn: ``--help`` and every refusal that needs none of them are
immediate.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``nex-vllm`` on these arguments (the process's own by default) and end the process with its exit status."""
    from nex_vllm.cli.app import app
    from nex_vllm.cli.outcome import exit_status

    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(exit_status(app, given))
