"""The vLLM names that driving an engine by hand takes, step by step."""

from __future__ import annotations

from vllm import LLM
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind

__all__ = ["LLM", "ChatParams", "EngineArgs", "RequestOutputKind", "VLLMClientError"]
