"""The example is a folder of scripts, not a package: tests import its modules the way the scripts do."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "countdown"))
