"""What loading the plugin, and importing the package, does to vLLM's flags and sampling parameters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _parsed(model: Path, *flags: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    import nex_vllm_plugin

    nex_vllm_plugin.register()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", str(model), *flags])
    AsyncEngineArgs.from_cli_args(arguments)
    return arguments


@pytest.mark.parametrize(
    "flags",
    [
        ["--plugin", "nex", "--nex-weights", "w", "--additional-config", '{"other": 1}'],
        ["--additional-config", '{"other": 1}', "--nex-weights", "w"],
        ["--additional-config", '{"other": 1, "nex": {"weights": "w"}}'],
    ],
)
def test_flags_and_additional_config_come_together_in_the_parsed_arguments(
    flags: list[str], shipped_model: Path
) -> None:
    # In the arguments themselves, because vLLM hands these to further server processes.
    expected = {"other": 1, "nex": {"weights": "w", "from_command_line": True}}
    assert _parsed(shipped_model, *flags).additional_config == expected


def test_a_flag_without_a_value_is_a_setting_where_it_is_given(shipped_model: Path) -> None:
    given = _parsed(shipped_model, "--nex-accept-other-model", "--nex-allow-lora").additional_config["nex"]
    assert given == {"accept_other_model": True, "allow_lora": True, "from_command_line": True}
    config = '{"nex": {"allow_lora": true}}'
    kept = _parsed(shipped_model, "--plugin", "nex", "--additional-config", config).additional_config["nex"]
    assert kept == {"allow_lora": True, "from_command_line": True}
    part = _parsed(shipped_model, "--nex-part", "reasoning", "--nex-reasoning-end", "</think>").additional_config["nex"]
    assert part == {"part": "reasoning", "reasoning_end": "</think>", "from_command_line": True}


def test_settings_that_are_no_mapping_end_the_command_with_a_sentence(
    shipped_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        _parsed(shipped_model, "--plugin", "nex", "--additional-config", '{"nex": "on"}')
    assert end.value.code == 2
    assert "'on', but must be a mapping" in capsys.readouterr().err


def test_registering_twice_is_a_no_op() -> None:
    from vllm.engine.arg_utils import EngineArgs

    import nex_vllm_plugin

    nex_vllm_plugin.register()
    once = (EngineArgs.create_engine_config, EngineArgs.add_cli_args, EngineArgs.from_cli_args.__func__)
    nex_vllm_plugin.register()
    assert once == (EngineArgs.create_engine_config, EngineArgs.add_cli_args, EngineArgs.from_cli_args.__func__)


@pytest.mark.parametrize(
    "statements",
    [
        "import nex_vllm, vllm; P = vllm.SamplingParams",
        pytest.param("import vllm, nex_vllm; P = vllm.SamplingParams", marks=pytest.mark.slow),
        pytest.param("import nex_vllm; from vllm import SamplingParams as P", marks=pytest.mark.slow),
        pytest.param(
            "import nex_vllm, importlib.util as u; u.find_spec('vllm'); import vllm; P = vllm.SamplingParams",
            marks=pytest.mark.slow,
        ),
        pytest.param("from nex_vllm import SamplingParams as P", marks=pytest.mark.slow),
    ],
)
def test_sampling_params_of_vllm_are_ours_after_the_import(statements: str) -> None:
    program = f"{statements}\nprint(P(n=3, nex_select=True).extra_args, P.__module__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.strip() == "{'nex_select': True} nex_vllm.plugin.params"


def test_importing_the_package_loads_neither_torch_nor_vllm() -> None:
    program = (
        "import sys, nex_vllm; print([n for n in ('torch', 'vllm', 'sklearn', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
