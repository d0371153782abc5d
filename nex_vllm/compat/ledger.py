"""Every vLLM name beyond its documented interface that NEX relies upon: what for, since when, and what would free us.

A test resolves each entry and checks the parameters named here, and fails by the entry's name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One vLLM name.

    Attributes:
        name: what this entry is called in a failing test.
        target: ``module:qualified.name``.
        use: ``wrap`` (replaced by a wrapper that calls it, only where NEX is on), ``subclass``, ``read`` or ``call``.
        why: what NEX needs it for.
        since: vLLM version in which it was read.
        until: what would let us delete the entry.
        parameters: parameters that we pass or read by name, in order.
    """

    name: str
    target: str
    use: str
    why: str
    since: str
    until: str
    parameters: tuple[str, ...] = ()


LEDGER = (
    Entry(
        "engine-args-config",
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        "wrap",
        "set worker and scheduler class when additional_config asks for NEX; passes through otherwise",
        "0.32",
        "a plugin hook that sees the finished configuration",
        ("self",),
    ),
    Entry(
        "engine-args-flags",
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        "wrap",
        "the flags of `vllm serve --plugin nex`",
        "0.32",
        "a plugin hook for command line flags",
        ("parser",),
    ),
    Entry(
        "engine-args-from-flags",
        "vllm.engine.arg_utils:EngineArgs.from_cli_args",
        "wrap",
        "fold the flags into additional_config",
        "0.32",
        "a plugin hook for command line flags",
        ("args",),
    ),
    Entry(
        "top-level-names",
        "vllm:MODULE_ATTRS",
        "read",
        "after `import nex_vllm`, vllm.SamplingParams accepts the NEX keywords",
        "0.32",
        "SamplingParams accepting plugin keywords",
    ),
    Entry(
        "check-request",
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "wrap",
        "refuse a request before it is queued; gather a streamed choice whole",
        "0.32",
        "a hook that validates extra_args",
        ("self", "request_id", "prompt", "params"),
    ),
    Entry(
        "follow-request",
        "vllm.v1.engine.output_processor:RequestState.from_new_request",
        "wrap",
        "attach the candidate to its request by object",
        "0.32",
        "per-request state for plugins in the output processor",
        ("tokenizer", "request"),
    ),
    Entry(
        "finish-request",
        "vllm.v1.engine.output_processor:RequestState.make_request_output",
        "wrap",
        "take the records out of kv_transfer_params and choose when the last candidate has ended",
        "0.32",
        "a selection hook in ParentRequest",
        ("self", "new_token_ids", "pooling_output", "finish_reason", "stop_reason", "kv_transfer_params"),
    ),
    Entry(
        "merge-outputs",
        "vllm.outputs:RequestOutput.add",
        "wrap",
        "keep the selection when outputs pile up and are merged",
        "0.32",
        "a declared field for plugins on RequestOutput",
        ("self", "next_output", "aggregate"),
    ),
    Entry(
        "cpu-worker",
        "vllm.v1.worker.cpu_worker:CPUWorker",
        "subclass",
        "place taps after load_model, reduce between execute_model and sample_tokens",
        "0.32",
        "worker hooks around a step",
    ),
    Entry(
        "gpu-worker",
        "vllm.v1.worker.gpu_worker:Worker",
        "subclass",
        "the same on CUDA",
        "0.32",
        "worker hooks around a step",
    ),
    Entry(
        "sample-tokens",
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        "wrap",
        "the place between a step's forward pass and its sampling",
        "0.32",
        "worker hooks around a step",
        ("self", "grammar_output"),
    ),
    Entry(
        "scheduler",
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "subclass",
        "send a step's records on with the step's tokens",
        "0.32",
        "a declared field for plugins from ModelRunnerOutput to EngineCoreOutput",
        ("self", "scheduler_output", "model_runner_output"),
    ),
    Entry(
        "async-scheduler",
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        "subclass",
        "the same with asynchronous scheduling",
        "0.32",
        "a declared field for plugins from ModelRunnerOutput to EngineCoreOutput",
    ),
    Entry(
        "output-free-field",
        "vllm.v1.engine:EngineCoreOutput.kv_transfer_params",
        "read",
        'carries the records under the key "nex"; merged, never overwritten, and hidden from users',
        "0.32",
        "a declared field for plugins on EngineCoreOutput",
    ),
    Entry(
        "v1-prepare-inputs",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "wrap",
        "the rows that will be sampled from, known before the forward pass (of one runner object, not of the class)",
        "0.32",
        "a runner hook after input preparation",
        ("self", "scheduler_output", "num_scheduled_tokens"),
    ),
    Entry(
        "v1-pending-logits",
        "vllm.v1.worker.gpu_model_runner:ExecuteModelState.logits",
        "read",
        "entropy and log-probability before any sampling filter",
        "0.32",
        "entropy among vLLM's own outputs",
    ),
    Entry(
        "gated-silu",
        "vllm.model_executor.layers.activation:SiluAndMul",
        "read",
        "recognise a gated MLP by its activation",
        "0.32",
        "a way to ask a model for its MLPs",
    ),
    Entry(
        "gated-gelu",
        "vllm.model_executor.layers.activation:GeluAndMul",
        "read",
        "recognise a gated MLP by its activation",
        "0.32",
        "a way to ask a model for its MLPs",
    ),
    Entry(
        "chat-request",
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_sampling_params",
        "wrap",
        "carry the NEX fields of a request body into extra_args",
        "0.32",
        "request fields for plugins",
        ("self",),
    ),
    Entry(
        "completion-request",
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_sampling_params",
        "wrap",
        "carry the NEX fields of a request body into extra_args",
        "0.32",
        "request fields for plugins",
        ("self",),
    ),
    Entry(
        "chat-beam-search",
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_beam_search_params",
        "wrap",
        "refuse nex_select together with beam search",
        "0.32",
        "request fields for plugins",
        ("self",),
    ),
    Entry(
        "completion-beam-search",
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_beam_search_params",
        "wrap",
        "refuse nex_select together with beam search",
        "0.32",
        "request fields for plugins",
        ("self",),
    ),
    Entry(
        "chat-answer",
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.chat_completion_full_generator",
        "wrap",
        "the nex object and every candidate's tokens in usage",
        "0.32",
        "response fields for plugins",
        (
            "self",
            "request",
            "result_generator",
            "request_id",
            "model_name",
            "conversation",
            "tokenizer",
            "request_metadata",
        ),
    ),
    Entry(
        "chat-stream",
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.chat_completion_stream_generator",
        "wrap",
        "stream one choice, with the nex object and the whole usage",
        "0.32",
        "response fields for plugins",
        ("self", "request", "result_generator"),
    ),
    Entry(
        "completion-answer",
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.request_output_to_completion_response",
        "wrap",
        "the nex object and every candidate's tokens in usage",
        "0.32",
        "response fields for plugins",
        (
            "self",
            "final_res_batch",
            "request",
            "request_id",
            "created_time",
            "model_name",
            "tokenizer",
            "request_metadata",
        ),
    ),
    Entry(
        "completion-stream",
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.completion_stream_generator",
        "wrap",
        "stream one choice, with the nex object and the whole usage",
        "0.32",
        "response fields for plugins",
        ("self", "request", "engine_inputs", "result_generator"),
    ),
)
