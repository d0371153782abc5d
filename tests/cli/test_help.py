"""Help is everywhere and immediate."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import Command

COMMANDS = {
    "calibrate": [
        "--prompts",
        "--out",
        "--samples",
        "--cache",
        "--top-k",
        "--row-tokens",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--force",
        "--from-cache",
        "--credit",
        "--rho",
        "--min-run",
    ],
    "record": [
        "--prompts",
        "--cache",
        "--samples",
        "--top-k",
        "--row-tokens",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--seed",
    ],
    "score": ["--weights", "--responses", "--out", "--force", "response_token_ids"],
    "inspect": ["PATH"],
    "demo": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_flags_and_gives_examples(nex_vllm: Command, command: str) -> None:
    done = nex_vllm(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"nex-vllm {command}" in done.stdout.split("Examples:")[1]
    for flag in COMMANDS[command]:
        assert flag in done.stdout


def test_without_arguments_the_commands_are_listed(nex_vllm: Command) -> None:
    done = nex_vllm()
    assert done.returncode == 0
    assert done.stdout == nex_vllm("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["calibrate", "--help"], ["inspect", "/nowhere/at/all"]])
def test_nothing_heavy_is_imported_for_it(arguments: list[str]) -> None:
    program = (
        "import sys, nex_vllm.cli\n"
        "try:\n"
        f"    nex_vllm.cli.main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'vllm', 'transformers', 'sklearn', 'hmmlearn', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
