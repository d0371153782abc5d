"""The vLLM names that driving an engine by hand takes, step by step, beyond `vllm.LLM`."""

from __future__ import annotations

from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind

__all__ = ["ChatParams", "EngineArgs", "RequestOutputKind", "VLLMClientError"]
