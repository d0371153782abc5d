"""Every vLLM name beyond its documented interface that NEX relies upon: what for, and what would free us of it.

All were read in vLLM 0.32. `ledger_check` looks each of them up when NEX is switched on, and a test does by the entry's
name. It is one long table, and stays in one file so that it can be read through when vLLM is upgraded.
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
        until: what would let us delete the entry.
        parameters: parameters that we pass or read by name, in order.
        sets: attributes that this function, an ``__init__``, gives its object.
    """

    name: str
    target: str
    use: str
    why: str
    until: str = "a stable interface for it"
    parameters: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


LEDGER = (
    Entry(
        "engine-args-config",
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        "wrap",
        "set worker and scheduler class when additional_config asks for NEX; passes through otherwise",
        until="a plugin hook that sees the finished configuration",
        parameters=("self",),
    ),
    Entry(
        "engine-args-flags",
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        "wrap",
        "the flags of `vllm serve --plugin nex`",
        until="a plugin hook for command line flags",
        parameters=("parser",),
    ),
    Entry(
        "engine-args-from-flags",
        "vllm.engine.arg_utils:EngineArgs.from_cli_args",
        "wrap",
        "fold the flags into additional_config",
        until="a plugin hook for command line flags",
        parameters=("args",),
    ),
    Entry(
        "top-level-names",
        "vllm:MODULE_ATTRS",
        "read",
        "after `import nex_vllm`, vllm.SamplingParams accepts the NEX keywords",
        until="SamplingParams accepting plugin keywords",
    ),
    Entry(
        "check-request",
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "wrap",
        "refuse a request before it is queued; gather a streamed choice whole",
        until="a hook that validates extra_args",
        parameters=("self", "request_id", "prompt", "params"),
    ),
    Entry(
        "follow-request",
        "vllm.v1.engine.output_processor:RequestState.from_new_request",
        "wrap",
        "attach the candidate to its request by object",
        until="per-request state for plugins in the output processor",
        parameters=("tokenizer", "request"),
    ),
    Entry(
        "finish-request",
        "vllm.v1.engine.output_processor:RequestState.make_request_output",
        "wrap",
        "take the records out of kv_transfer_params and choose when the last candidate has ended",
        until="a selection hook in ParentRequest",
        parameters=("self", "new_token_ids", "pooling_output", "finish_reason", "stop_reason", "kv_transfer_params"),
    ),
    Entry(
        "merge-outputs",
        "vllm.outputs:RequestOutput.add",
        "wrap",
        "keep the selection when outputs pile up and are merged",
        until="a declared field for plugins on RequestOutput",
        parameters=("self", "next_output", "aggregate"),
    ),
    Entry(
        "scheduler",
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "subclass",
        "send a step's records on with the step's tokens",
        until="a declared field for plugins from ModelRunnerOutput to EngineCoreOutput",
        parameters=("self", "scheduler_output", "model_runner_output"),
    ),
    Entry(
        "async-scheduler",
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        "subclass",
        "the same with asynchronous scheduling",
        until="a declared field for plugins from ModelRunnerOutput to EngineCoreOutput",
    ),
    Entry(
        "output-free-field",
        "vllm.v1.engine:EngineCoreOutput.kv_transfer_params",
        "read",
        'carries the records under the key "nex"; merged, never overwritten, and hidden from users',
        until="a declared field for plugins on EngineCoreOutput",
    ),
    Entry(
        "v1-prepare-inputs",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "wrap",
        "the rows that will be sampled from, known before the forward pass (of one runner object, not of the class)",
        until="a runner hook after input preparation",
        parameters=("self", "scheduler_output", "num_scheduled_tokens"),
    ),
    Entry(
        "v1-pending-logits",
        "vllm.v1.worker.gpu_model_runner:ExecuteModelState.logits",
        "read",
        "entropy and log-probability before any sampling filter",
        until="entropy among vLLM's own outputs",
    ),
    Entry(
        "gated-silu",
        "vllm.model_executor.layers.activation:SiluAndMul",
        "read",
        "recognise a gated MLP by its activation",
        until="a way to ask a model for its MLPs",
    ),
    Entry(
        "gated-gelu",
        "vllm.model_executor.layers.activation:GeluAndMul",
        "read",
        "recognise a gated MLP by its activation",
        until="a way to ask a model for its MLPs",
    ),
    Entry(
        "chat-request",
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_sampling_params",
        "wrap",
        "carry the NEX fields of a request body into extra_args",
        until="request fields for plugins",
        parameters=("self",),
    ),
    Entry(
        "completion-request",
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_sampling_params",
        "wrap",
        "carry the NEX fields of a request body into extra_args",
        until="request fields for plugins",
        parameters=("self",),
    ),
    Entry(
        "chat-beam-search",
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_beam_search_params",
        "wrap",
        "refuse nex_select together with beam search",
        until="request fields for plugins",
        parameters=("self",),
    ),
    Entry(
        "completion-beam-search",
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_beam_search_params",
        "wrap",
        "refuse nex_select together with beam search",
        until="request fields for plugins",
        parameters=("self",),
    ),
    Entry(
        "chat-answer",
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.chat_completion_full_generator",
        "wrap",
        "the nex object and every candidate's tokens in usage",
        until="response fields for plugins",
        parameters=(
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
        until="response fields for plugins",
        parameters=("self", "request", "result_generator"),
    ),
    Entry(
        "completion-answer",
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.request_output_to_completion_response",
        "wrap",
        "the nex object and every candidate's tokens in usage",
        until="response fields for plugins",
        parameters=(
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
        until="response fields for plugins",
        parameters=("self", "request", "engine_inputs", "result_generator"),
    ),
    Entry(
        "new-requests",
        "vllm.v1.core.sched.output:NewRequestData.sampling_params",
        "read",
        "take up requests when the worker first sees them, by their extra_args",
    ),
    Entry(
        "finished-requests",
        "vllm.v1.core.sched.output:SchedulerOutput.finished_req_ids",
        "read",
        "drop requests that have ended",
    ),
    Entry(
        "async-output",
        "vllm.v1.outputs:AsyncModelRunnerOutput.get_output",
        "subclass",
        "add a step's record when its tokens are read",
        parameters=("self",),
    ),
    Entry(
        "step-requests",
        "vllm.v1.outputs:ModelRunnerOutput.req_id_to_index",
        "read",
        "which of the step's tokens are whose",
    ),
    Entry(
        "draft-counts",
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata.num_draft_tokens",
        "read",
        "rows with logits of every request",
    ),
    Entry(
        "v1-batch", "vllm.v1.worker.gpu_input_batch:InputBatch.req_ids", "read", "the order of requests in the batch"
    ),
    Entry(
        "detokenizer-tokens",
        "vllm.v1.engine.detokenizer:IncrementalDetokenizer.output_token_ids",
        "read",
        "a candidate's tokens as they are returned",
    ),
    Entry(
        "parent-request",
        "vllm.v1.engine.parallel_sampling:ParentRequest.get_outputs",
        "read",
        "all n outputs come together once the last candidate has ended",
        parameters=("self", "child_request_id", "completion_output"),
    ),
    Entry(
        "client-error",
        "vllm.exceptions:VLLMValidationError",
        "subclass",
        "a refused request is a 400, with its sentence",
        parameters=("message",),
    ),
    Entry(
        "scheduler-choice",
        "vllm.config.scheduler:SchedulerConfig.scheduler_cls",
        "read",
        "our scheduler takes its place by name",
    ),
    Entry(
        "worker-choice", "vllm.config.parallel:ParallelConfig.worker_cls", "read", "our worker takes its place by name"
    ),
    Entry(
        "v2-prepare-inputs",
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs",
        "wrap",
        "the rows that will be sampled from, known before the forward pass (of one runner object, not of the class)",
        until="a runner hook after input preparation",
        parameters=("self", "scheduler_output", "batch_req_state", "batch_desc"),
    ),
    Entry(
        "v2-batch", "vllm.v1.worker.gpu.input_batch:InputBatch.req_ids", "read", "the order of requests in the batch"
    ),
    Entry(
        "v2-first-rows",
        "vllm.v1.worker.gpu.input_batch:InputBatch.query_start_loc_np",
        "read",
        "where each request's rows begin",
    ),
    Entry(
        "v2-num-rows",
        "vllm.v1.worker.gpu.input_batch:InputBatch.num_scheduled_tokens",
        "read",
        "how many rows each request has",
    ),
    Entry(
        "v2-num-tokens",
        "vllm.v1.worker.gpu.input_batch:InputBatch.num_tokens",
        "read",
        "whether the batch holds one token of each request",
    ),
    Entry(
        "v2-num-computed",
        "vllm.v1.worker.gpu.input_batch:InputBatch.num_computed_tokens_np",
        "read",
        "which positions of a given response a prefill computes",
    ),
    Entry(
        "v2-drafts",
        "vllm.v1.worker.gpu.input_batch:InputBatch.num_draft_tokens",
        "read",
        "whether a step verifies drafts",
    ),
    Entry(
        "v2-logits-rows",
        "vllm.v1.worker.gpu.input_batch:InputBatch.logits_indices",
        "read",
        "the rows that will be sampled from",
    ),
    Entry(
        "v2-num-logits",
        "vllm.v1.worker.gpu.input_batch:InputBatch.cu_num_logits_np",
        "read",
        "how many of them each request has",
    ),
    Entry(
        "v2-state",
        "vllm.v1.worker.gpu.model_runner:ExecuteModelState.input_batch",
        "read",
        "the batch whose tokens wait to be sampled",
    ),
    Entry(
        "v2-hidden-states",
        "vllm.v1.worker.gpu.model_runner:ExecuteModelState.hidden_states",
        "read",
        "next-token distribution, where rows are asked for",
    ),
    Entry(
        "adaptive-drafts",
        "vllm.config.speculative:SpeculativeConfig.enable_adaptive_verification",
        "read",
        "refused: it deals drafts out on the device, so no host knows whose row is whose",
    ),
    Entry(
        "fused-activation",
        "vllm.config.compilation:PassConfig.fuse_act_quant",
        "read",
        "refuse a pass that removes the tensor that NEX reads",
    ),
    Entry(
        "renderer-text",
        "vllm.renderers.base:BaseRenderer.render_cmpl",
        "call",
        "tokenise text prompts as LLM.generate does, without generating yet",
        until="LLM giving each output when it ends",
        parameters=("self", "prompts"),
    ),
    Entry(
        "renderer-chat",
        "vllm.renderers.base:BaseRenderer.render_chat",
        "call",
        "tokenise messages as LLM.chat does, without generating yet",
        until="LLM giving each output when it ends",
        parameters=("self", "conversations", "chat_params", "tok_params"),
    ),
    Entry("chat-template", "vllm.renderers:ChatParams", "call", "render messages as the server does (command line)"),
    Entry(
        "engine-step",
        "vllm.v1.engine.llm_engine:LLMEngine.step",
        "call",
        "deliver every response when it ends (command line)",
        parameters=("self",),
    ),
    Entry(
        "add-request",
        "vllm.v1.engine.llm_engine:LLMEngine.add_request",
        "call",
        "queue a response (command line)",
        parameters=("self", "request_id", "prompt", "params"),
    ),
    Entry(
        "client-errors",
        "vllm.exceptions:VLLMClientError",
        "call",
        "tell a refused prompt from a failed engine (command line)",
    ),
    Entry(
        "worker",
        "vllm.v1.worker.gpu_worker:Worker.load_model",
        "subclass",
        "place the taps and attach the recorder after loading; every worker inherits it",
        until="worker hooks around loading",
        parameters=("self",),
    ),
    Entry(
        "worker-lookup",
        "vllm.utils.import_utils:resolve_obj_by_qualname",
        "call",
        "find the worker class that ours derives from",
        parameters=("qualname",),
    ),
    Entry(
        "v1-execute",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model",
        "wrap",
        "take up and drop requests (of one runner object, not of the class)",
        until="a runner hook around a step",
        parameters=("self", "scheduler_output"),
    ),
    Entry(
        "v1-sample",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens",
        "wrap",
        "reduce the record before sampling, send it after (of one runner object)",
        until="a runner hook around a step",
        parameters=("self", "grammar_output"),
    ),
    Entry(
        "v1-runner",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.__init__",
        "read",
        "where a batch's rows begin, the batch, and what waits to be sampled",
        sets=("query_start_loc", "input_batch", "execute_model_state"),
    ),
    Entry(
        "v1-num-computed",
        "vllm.v1.worker.gpu_input_batch:InputBatch.__init__",
        "read",
        "which positions of a given response a prefill computes",
        sets=("num_computed_tokens_cpu",),
    ),
    Entry(
        "v2-execute",
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.execute_model",
        "wrap",
        "take up and drop requests (of one runner object, not of the class)",
        until="a runner hook around a step",
        parameters=("self", "scheduler_output"),
    ),
    Entry(
        "v2-sample",
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample_tokens",
        "wrap",
        "reduce the record before sampling, send it after (of one runner object)",
        until="a runner hook around a step",
        parameters=("self", "grammar_output"),
    ),
    Entry(
        "v2-runner",
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.__init__",
        "read",
        "what waits to be sampled",
        sets=("execute_model_state",),
    ),
    Entry(
        "step-tokens",
        "vllm.v1.outputs:ModelRunnerOutput.sampled_token_ids",
        "read",
        "how many tokens of each request a step kept",
    ),
    Entry(
        "step-logprobs", "vllm.v1.outputs:ModelRunnerOutput.logprobs", "read", "log-probability of the sampled tokens"
    ),
    Entry(
        "step-logprobs-of",
        "vllm.v1.outputs:LogprobsLists.slice_request",
        "call",
        "one request's part of them; the sampled token's own stands first",
        parameters=("self", "req_idx", "num_positions"),
    ),
    Entry(
        "logprobs-mode",
        "vllm.config.model:ModelConfig.logprobs_mode",
        "read",
        "refuse log-probabilities that are not the model's own",
    ),
    Entry(
        "hidden-logprobs",
        "vllm.v1.engine.logprobs:LogprobsProcessor._update_sample_logprobs",
        "subclass",
        "hide log-probabilities that NEX asked for from users who did not",
        parameters=("self", "logprobs_lists"),
    ),
    Entry(
        "free-request",
        "vllm.v1.core.sched.scheduler:Scheduler._free_request",
        "subclass",
        "forget what is gathered for a request when it ends or is aborted",
        until="per-request state that plugins may hang on a request",
        parameters=("self", "request"),
    ),
    Entry(
        "scheduler-requests",
        "vllm.v1.core.sched.scheduler:Scheduler.__init__",
        "read",
        "requests that are still there",
        sets=("requests",),
    ),
    Entry(
        "request-state",
        "vllm.v1.engine.output_processor:RequestState.__init__",
        "read",
        "where candidates meet, which one this is, and what it has generated",
        until="per-request state for plugins in the output processor",
        sets=("parent_req", "request_index", "prompt_len", "external_req_id", "detokenizer", "logprobs_processor"),
    ),
    Entry(
        "tensor-parallel-group",
        "vllm.distributed.parallel_state:get_tp_group",
        "call",
        "ranks agree on a threshold and add up masses",
    ),
    Entry(
        "group-coordinator",
        "vllm.distributed.parallel_state:GroupCoordinator.__init__",
        "read",
        "the group on the record's device, and this rank's place in it",
        sets=("device_group", "rank_in_group", "world_size"),
    ),
    Entry(
        "layer-width",
        "vllm.model_executor.layers.linear:RowParallelLinear.__init__",
        "read",
        "units of a layer that this rank holds; the CPU backend empties the weight",
        until="a way to ask a model for its MLPs",
        sets=("input_size_per_partition",),
    ),
    Entry(
        "rust-front-end", "vllm.envs:VLLM_USE_RUST_FRONTEND", "read", "refused: it runs none of the front end's hooks"
    ),
    Entry(
        "store",
        "torch.distributed.distributed_c10d:_get_default_store",
        "call",
        "ranks compare their settings before the first collective (a private name of torch)",
    ),
    Entry(
        "weight-update",
        "vllm.v1.worker.gpu_worker:Worker._start_weight_update",
        "subclass",
        "unscore candidates of a model that gets other weights",
        until="a version number of the model's weights",
        parameters=("self", "is_draft"),
    ),
    Entry(
        "v1-reload-weights",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights",
        "wrap",
        "unscore candidates of a model that gets other weights",
        until="a version number of the model's weights",
        parameters=("self",),
    ),
    Entry(
        "v2-reload-weights",
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.reload_weights",
        "wrap",
        "unscore candidates of a model that gets other weights",
        until="a version number of the model's weights",
        parameters=("self",),
    ),
    Entry(
        "chat-adapter",
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat._maybe_get_adapters",
        "wrap",
        "refuse a choice by score with a LoRA adapter before a stream's status 200",
        until="request fields for plugins",
        parameters=("self", "request"),
    ),
    Entry(
        "completion-adapter",
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion._maybe_get_adapters",
        "wrap",
        "refuse a choice by score with a LoRA adapter before a stream's status 200",
        until="request fields for plugins",
        parameters=("self", "request"),
    ),
    Entry(
        "request-adapter", "vllm.v1.engine:EngineCoreRequest.lora_request", "read", "whether a request uses an adapter"
    ),
    Entry("lora-config", "vllm.config:VllmConfig.lora_config", "read", "whether requests may use adapters"),
    Entry(
        "prefix-cache-of-request",
        "vllm.sampling_params:SamplingParams.skip_reading_prefix_cache",
        "read",
        "compute every position of a given response, cached or not",
    ),
    Entry("output-kind", "vllm.sampling_params:SamplingParams.output_kind", "read", "gather a streamed choice whole"),
    Entry(
        "num-logprobs",
        "vllm.sampling_params:SamplingParams.num_logprobs",
        "read",
        "whether a user asked for log-probabilities, in any way",
    ),
    Entry(
        "resumable-request",
        "vllm.v1.engine:EngineCoreRequest.resumable",
        "read",
        "refuse prompts that are streamed in turns",
    ),
    Entry(
        "output-tokens",
        "vllm.v1.engine:EngineCoreOutput.new_token_ids",
        "read",
        "which of a step's records an output's tokens have",
    ),
    Entry(
        "output-end",
        "vllm.v1.engine:EngineCoreOutput.finish_reason",
        "read",
        "send what was gathered with a request's last token",
    ),
    Entry(
        "scheduled-requests",
        "vllm.v1.core.sched.output:SchedulerOutput.scheduled_new_reqs",
        "read",
        "take up requests when the worker first sees them",
    ),
    Entry(
        "scheduled-tokens",
        "vllm.v1.core.sched.output:SchedulerOutput.total_num_scheduled_tokens",
        "read",
        "whether a step repeats the one before",
    ),
    Entry(
        "prompt-of-new-request",
        "vllm.v1.core.sched.output:NewRequestData.prompt_token_ids",
        "read",
        "where a given response ends",
    ),
    Entry(
        "host-buffer",
        "vllm.v1.utils:CpuGpuBuffer.__init__",
        "read",
        "the host's side of V1's query_start_loc",
        sets=("np",),
    ),
    Entry(
        "model-of-runner",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model",
        "call",
        "the model whose weights are watched",
        parameters=("self",),
    ),
    Entry(
        "logits-of-model",
        "vllm.model_executor.models.interfaces_base:VllmModelForTextGeneration.compute_logits",
        "wrap",
        "see the logits that V2 samples from (of one model object, for one step)",
        parameters=("self", "hidden_states"),
    ),
    Entry(
        "reset-weights",
        "vllm.v1.worker.gpu_worker:Worker.reset_weights",
        "subclass",
        "unscore candidates of a model that gets other weights",
        until="a version number of the model's weights",
        parameters=("self",),
    ),
    Entry(
        "batch-sharded-sampling",
        "vllm.config.parallel:ParallelConfig.enable_batch_sharded_sampling",
        "read",
        "refused: no rank sees all logits",
    ),
    Entry(
        "engine-option-parser",
        "vllm.utils.argparse_utils:FlexibleArgumentParser",
        "subclass",
        "parse engine options after -- (command line)",
    ),
    Entry(
        "plugins",
        "vllm.plugins:load_general_plugins",
        "call",
        "some plugins add values to engine options (command line)",
    ),
)
