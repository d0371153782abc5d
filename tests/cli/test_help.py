"""Help is everywhere, whole and immediate."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command, Run

SAMPLING = "--prompts --cache --samples --top-k --row-tokens --max-tokens --temperature --top-p --seed"
COMMANDS = {
    "calibrate": f"{SAMPLING} --out --force --from-cache --credit --rho --min-run --json",
    "record": SAMPLING,
    "score": "--weights --responses --out --check-noise --force --accept-other-model response_token_ids",
    "compare": "--problems --out -n --top-k --row-tokens --max-tokens --temperature --top-p --seed --weights "
    "--calibration --grader --extract --selectors --selector-file --no-noise --accept-other-model --force",
    "fit": "CANDIDATES --out --force",
    "sweep": "--over --candidates --out --top-k --row-tokens --credit --rho --min-run --force first_cycle",
    "inspect": "PATH",
    "report": "PATH --out --weights --tokenizer --responses --force",
    "demo": "--problems --out",
}
WITH_ENGINE_OPTIONS = {"calibrate", "record", "score", "compare"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_flags_and_gives_examples(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert (done.status, done.err) == (0, "")
    assert f"nex-vllm {command}" in done.out.split("Examples:")[1]
    for flag in COMMANDS[command].split():
        assert flag in done.out
    with_engine_options = command in WITH_ENGINE_OPTIONS
    assert ("[-- ENGINE OPTIONS]" in done.out.splitlines()[0]) == with_engine_options
    assert (" -- --tensor-parallel-size 4" in done.out) == with_engine_options
    assert "[[" not in done.out


def test_without_arguments_the_commands_are_listed_with_whole_sentences(run: Run) -> None:
    done = run()
    assert done == run("--help")
    listed = done.out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_version_is_printed_by_the_program_itself(nex_vllm: Command) -> None:
    from nex_vllm import __version__

    done = nex_vllm("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nex-vllm {__version__}\n", "")
    assert nex_vllm("inspect", "/nowhere/at/all").returncode == 2


def test_ctrl_c_during_an_import_ends_the_program_with_one_sentence(model: Path, prompts: Path, tmp_path: Path) -> None:
    """Importing torch in the middle of an exception aborts the process: none may be raised there."""
    program = (
        "import signal, sys, nex_vllm.cli\n"
        "class InterruptedImport:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, InterruptedImport())\n"
        "nex_vllm.cli.main(sys.argv[1:])\n"
    )
    arguments = ["record", str(model), "--prompts", str(prompts), "--cache", str(tmp_path / "new cache")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 130
    *_, last = done.stderr.splitlines()
    kept, command = last.split(", run: ")
    assert kept == "error: interrupted: the program was still being loaded; to start over"
    assert shlex.split(command) == ["nex-vllm", *arguments]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new cache").exists()


@pytest.mark.parametrize("arguments", [["calibrate", "--help"], ["inspect", "/nowhere/at/all"]])
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
