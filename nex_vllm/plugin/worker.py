"""Workers that record: vLLM's own, plus taps in the model and a reduction after each forward pass."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker as VllmCPUWorker
from vllm.v1.worker.gpu_worker import Worker as VllmGPUWorker

from nex_vllm.choosing.options import RequestOptions, checked_request
from nex_vllm.plugin import runners
from nex_vllm.plugin.activation import resolved_settings
from nex_vllm.plugin.mlps import decoder_mlps, layout_of, place_taps
from nex_vllm.plugin.parallel import tensor_parallel_ranks
from nex_vllm.recording.record import Record
from nex_vllm.recording.recorder import PendingStep, Recorder, RecordingOptions, rows_needed
from nex_vllm.records import STEP_ATTRIBUTE
from nex_vllm.storage import load_weights

logger = init_logger("vllm.nex")


class _RecordedOutput(AsyncModelRunnerOutput):
    """An asynchronous step output that gains the step's record when its tokens are read."""

    def __init__(self, plain: AsyncModelRunnerOutput, pending: PendingStep) -> None:
        self._plain = plain
        self._pending = pending

    def get_output(self) -> ModelRunnerOutput:
        return _with_record(self._plain.get_output(), self._pending)


def _with_record(output: ModelRunnerOutput, pending: PendingStep) -> ModelRunnerOutput:
    tokens = runners.sampled_tokens(output, pending.stats_first)
    setattr(output, STEP_ATTRIBUTE, pending.complete(tokens))
    return output


def _recording_options(asked: RequestOptions) -> RecordingOptions:
    return RecordingOptions(
        entries=asked.wants_entries, token_stats=asked.wants_token_stats, response_start=asked.response_start
    )


# For type checking only: the mixin calls what vLLM's class beside it has.
_BesideVllm: Any = object


class _RecordingWorker(_BesideVllm):
    """What both workers do beyond vLLM's own."""

    _recorder: Recorder

    def load_model(self, **kwargs: Any) -> None:
        """Load the model and, before anything is traced, put the taps in."""
        super().load_model(**kwargs)
        settings = resolved_settings(self.vllm_config)
        mlps = decoder_mlps(self.get_model(), self.model_config.hf_text_config.num_hidden_layers)
        ranks = tensor_parallel_ranks()
        layout = layout_of(mlps, ranks)
        weights = None
        if settings.weights is not None:
            file = load_weights(settings.weights)
            weights = layout.dense(file.keys, file.weights)
        scheduler = self.scheduler_config
        speculative = self.vllm_config.speculative_config
        record = Record(
            layout,
            top_k=settings.top_k,
            weights=weights,
            max_tokens=scheduler.max_num_batched_tokens,
            max_rows=rows_needed(
                scheduler.max_num_seqs,
                speculative.num_speculative_tokens if speculative is not None else 0,
                scheduler.max_num_batched_tokens,
                teacher_forced=settings.teacher_forced,
            ),
            dtype=self.model_config.dtype,
            device=self.device,
            ranks=ranks,
        )
        place_taps(mlps, record)
        record.warm_up()
        self._recorder = Recorder(record, teacher_forced=settings.teacher_forced)
        runners.attach(self.model_runner, self._recorder)
        logger.info(
            "NEX records %d layers of %d units, top %d; its buffers take %.1f MiB.",
            layout.num_layers,
            layout.width,
            settings.top_k,
            record.num_bytes / 2**20,
        )

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run the forward pass; the taps fill the record."""
        self._recorder.forget(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            checked = checked_request(new.sampling_params.extra_args) if new.sampling_params is not None else None
            if checked is not None:
                self._recorder.follow(new.req_id, _recording_options(checked.options), len(new.prompt_token_ids or ()))
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Reduce the record, sample, and send both along together."""
        pending = self._recorder.finish(runners.pending_logits(self.model_runner))
        output = super().sample_tokens(grammar_output)
        if pending is None or output is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _RecordedOutput(output, pending)
        return _with_record(output, pending)


class CPUWorker(_RecordingWorker, VllmCPUWorker):
    """The CPU backend's worker."""


class GPUWorker(_RecordingWorker, VllmGPUWorker):
    """The CUDA worker."""
