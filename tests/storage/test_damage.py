"""Files that were damaged on disk are refused or read as they were; nothing wrong is loaded and no process ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_damaged_files_are_refused_or_read_as_they_were() -> None:
    script = Path(__file__).with_name("damage.py")
    run = subprocess.run([sys.executable, str(script), "400"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    assert counts["weights: refused"] > 150
    assert counts["shard: refused"] > 40
    assert counts["meta.json: refused"] + counts["responses.jsonl: refused"] > 30
    assert counts["responses.jsonl: loaded in part"] > 0
