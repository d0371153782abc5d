"""``python -m nex_vllm.cli`` is ``nex-vllm``."""

from nex_vllm.cli import main

main()
