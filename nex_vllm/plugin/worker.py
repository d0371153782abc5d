"""Workers that record: any GPU or CPU worker of vLLM, plus taps in the model and a recorder on its model runner."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger
from vllm.utils.import_utils import resolve_obj_by_qualname

from nex_vllm.plugin import runners
from nex_vllm.plugin.mlps import decoder_mlps, layout_of, place_taps
from nex_vllm.plugin.parallel import agree_on_settings, tensor_parallel_ranks
from nex_vllm.plugin.settings import resolved_settings
from nex_vllm.plugin.weight_updates import watch_weights
from nex_vllm.recording.record import Record
from nex_vllm.recording.recorder import Recorder, rows_needed
from nex_vllm.recording.statistics import LogitStatistics
from nex_vllm.storage import load_weights

logger = init_logger("vllm.nex")


def __getattr__(name: str) -> type:
    """Return the recording version of a worker class, by the name that :func:`activation.recording_worker` makes."""
    prefix, _, plain_name = name.partition(":")
    if prefix != "recording" or not plain_name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    plain = resolve_obj_by_qualname(plain_name.replace(":", "."))
    # Kept, so that every look-up gives the same class: vLLM adds its worker extension to what it has looked up.
    recording = type(f"Recording{plain.__name__}", (_RecordingMixin, plain), {"__module__": __name__})
    globals()[name] = recording
    return recording


# For type checking only: the mixin calls what vLLM's class beside it has.
_VllmWorker: Any = object


class _RecordingMixin(_VllmWorker):
    """What a recording worker does beyond vLLM's own."""

    def load_model(self, **kwargs: Any) -> None:
        """Load the model and, before anything is traced, put the taps in and the recorder on the runner."""
        settings = resolved_settings(self.vllm_config)
        # Says in a sentence that the file is not on this node, if so.
        file = None if settings.weights is None else load_weights(settings.weights)
        agree_on_settings(settings)
        super().load_model(**kwargs)
        mlps = decoder_mlps(self.get_model(), self.model_config.hf_text_config.num_hidden_layers)
        ranks = tensor_parallel_ranks()
        layout = layout_of(mlps, ranks)
        weights = None if file is None else layout.dense(file.keys, file.weights)
        sampled_rows, recorded_rows = self._rows_needed(teacher_forced=settings.teacher_forced)
        record = Record(
            layout,
            top_k=settings.top_k,
            weights=weights,
            max_tokens=self.scheduler_config.max_num_batched_tokens,
            max_rows=recorded_rows,
            dtype=self.model_config.dtype,
            device=self.device,
            ranks=ranks,
        )
        place_taps(mlps, record)
        record.warm_up()
        statistics = LogitStatistics(sampled_rows, self.model_config.get_vocab_size(), self.device)
        self._recorder = Recorder(record, statistics, teacher_forced=settings.teacher_forced)
        runners.attach(self.model_runner, self._recorder)
        watch_weights(self.model_runner, self._weights_changed)
        logger.info(
            "NEX records %d layers of %d units, top %d; its buffers take %.1f MiB.",
            layout.num_layers,
            layout.width,
            settings.top_k,
            (record.num_bytes + statistics.num_bytes) / 2**20,
        )

    def _start_weight_update(self, is_draft: bool = False) -> None:
        super()._start_weight_update(is_draft)
        if not is_draft:
            self._weights_changed()

    def reset_weights(self) -> None:
        super().reset_weights()
        self._weights_changed()

    def _weights_changed(self) -> None:
        if not self._recorder.weights_changed:
            self._recorder.weights_changed = True
            logger.warning(
                "The model's weights were changed after the engine started. The neuron weights belong to the model as "
                "it was, so candidates are unscored from now on; calibrate the new model and start the engine with "
                "its weights."
            )

    def _rows_needed(self, *, teacher_forced: bool) -> tuple[int, int]:
        """Return how many rows one step can sample from, and how many it can record, at most."""
        scheduler, speculative = self.scheduler_config, self.vllm_config.speculative_config
        shape = (
            scheduler.max_num_seqs,
            speculative.num_speculative_tokens if speculative is not None else 0,
            scheduler.max_num_batched_tokens,
        )
        return rows_needed(*shape, teacher_forced=False), rows_needed(*shape, teacher_forced=teacher_forced)
