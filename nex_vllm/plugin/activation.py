"""Switch NEX on in one engine: check what was asked for, then point vLLM at our worker and scheduler."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.utils.import_utils import resolve_obj_by_qualname

from nex_vllm.algorithm.rows import DEFAULT_ROW_TOKENS, DEFAULT_TOP_K
from nex_vllm.algorithm.signals import DEFAULT_DEEPCONF_WINDOW
from nex_vllm.choosing.answers import parse_extraction
from nex_vllm.choosing.checks import OWN_LOGPROBS
from nex_vllm.errors import InputError
from nex_vllm.plugin.ledger_check import require_all
from nex_vllm.plugin.reasoning import resolve_part
from nex_vllm.plugin.settings import (
    CONFIG_KEY,
    NexSettings,
    ResolvedSettings,
)
from nex_vllm.storage import (
    SelectorFile,
    WeightsFile,
    check_fits,
    check_selector_fits,
    decode_diagnostics,
    load_selector,
    load_weights,
    model_fingerprint,
)
from nex_vllm.storage.weights import weights_digest

logger = logging.getLogger("vllm.nex")

SCHEDULER = "nex_vllm.plugin.scheduler.Scheduler"
ASYNC_SCHEDULER = "nex_vllm.plugin.scheduler.AsyncScheduler"

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def create_engine_config_with_nex(engine_args: Any, make_config: Callable[[], Any]) -> Any:
    """Make vLLM's configuration and switch NEX on in it.

    Raises:
        InputError: for unusable settings, a weights file that does not fit, or a model or parallel layout that NEX
            cannot read. On a command line the process ends instead, with one sentence and exit status 2.
    """
    raw = engine_args.additional_config[CONFIG_KEY]
    try:
        settings = NexSettings.from_config(raw)
        # Before the model's configuration is read, which can take long.
        if settings.weights is not None:
            load_weights(Path(settings.weights))
        if settings.selector_file is not None:
            load_selector(Path(settings.selector_file))
        config = make_config()
        _refuse_unsupported(config)
        worker = recording_worker(config.parallel_config.worker_cls)
        require_all()
        resolved = _resolve(settings, config)
    except InputError as error:
        if not (isinstance(raw, dict) and raw.get("from_command_line")):
            raise
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    config.additional_config = {**config.additional_config, CONFIG_KEY: resolved.to_config()}
    config.parallel_config.worker_cls = worker
    config.scheduler_config.scheduler_cls = ASYNC_SCHEDULER if config.scheduler_config.async_scheduling else SCHEDULER
    from nex_vllm.plugin import frontend

    frontend.install()
    if settings.from_command_line or "vllm.entrypoints.openai.api_server" in sys.modules:
        # A server, and not `LLM` in somebody's program, which serves nobody over HTTP.
        from nex_vllm.plugin import openai_server

        openai_server.install(resolved)
    return config


def recording_worker(plain_name: str) -> str:
    """Return the name by which vLLM finds the recording version of a worker class (see `nex_vllm.plugin.worker`).

    Raises:
        InputError: for a worker that does not load and run models as vLLM's GPU and CPU workers do.
    """
    # Before all else of the engine, because the module of the CPU's worker replaces CUDA's streams.
    try:
        plain = resolve_obj_by_qualname(plain_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"The worker class {plain_name} cannot be loaded ({error}); give the full name of one, or leave out "
            "--worker-cls."
        ) from None
    from vllm.v1.worker.gpu_worker import Worker

    if not (isinstance(plain, type) and issubclass(plain, Worker)):
        raise InputError(
            f"NEX records in workers that derive from vllm.v1.worker.gpu_worker.Worker, but {plain_name} does not; "
            "use another worker, or serve without NEX."
        )
    return f"nex_vllm.plugin.worker.recording:{plain_name.replace('.', ':')}"


def _refuse_unsupported(config: Any) -> None:
    """Refuse, before anything is loaded, what NEX cannot record."""
    parallel = config.parallel_config
    degrees = {
        "pipeline parallel": parallel.pipeline_parallel_size,
        "decode context parallel": parallel.decode_context_parallel_size,
        "prefill context parallel": getattr(parallel, "prefill_context_parallel_size", 1),
    }
    for name, degree in degrees.items():
        if degree > 1:
            raise InputError(
                f"NEX does not record under {name} of degree {degree}; set it to 1 (tensor and data parallel work), "
                "or serve without NEX."
            )
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "num_ubatches", 0) > 1:
        raise InputError("NEX does not record under dual-batch overlap (micro-batches); switch it off.")
    device = config.device_config.device_type
    if device not in {"cpu", "cuda"}:
        raise InputError(f"NEX runs on vLLM's CPU and CUDA backends, but this one is {device!r}; serve without NEX.")
    if envs.VLLM_USE_RUST_FRONTEND:
        raise InputError(
            "The Rust front end (VLLM_USE_RUST_FRONTEND) runs none of NEX's hooks, so it would choose the first "
            "candidate always; unset that variable, or serve without NEX."
        )
    if getattr(parallel, "enable_batch_sharded_sampling", False):
        raise InputError(
            "NEX does not record under batch-sharded sampling, where no rank sees all logits; leave "
            "--enable-batch-sharded-sampling out."
        )
    if config.scheduler_config.scheduler_cls is not None:
        raise InputError(
            f"NEX brings its own scheduler, but {config.scheduler_config.scheduler_cls} was asked for; leave it unset."
        )
    if getattr(config.speculative_config, "enable_adaptive_verification", False):
        raise InputError(
            "Adaptive verification deals drafts out on the device, where NEX cannot follow which row is whose; set "
            'speculative_config={"enable_adaptive_verification": false}.'
        )
    if getattr(config.cache_config, "kv_sharing_fast_prefill", False):
        raise InputError(
            "NEX does not record under kv_sharing_fast_prefill, where the last layers see only some rows of a batch; "
            "leave it off."
        )
    if config.compilation_config.pass_config.fuse_act_quant and config.quant_config is not None:
        raise InputError(
            "The activation is fused with quantisation (pass_config.fuse_act_quant), which removes the tensor that NEX "
            'reads; set compilation_config={"pass_config": {"fuse_act_quant": false}}.'
        )
    text = config.model_config.hf_text_config
    experts = next((name for name in _EXPERT_COUNTS if (getattr(text, name, None) or 0) > 1), None)
    if experts is not None:
        raise InputError(
            f"{config.model_config.model} is a mixture of experts ({experts} = {getattr(text, experts)}); NEX reads "
            "dense gated MLPs only. Serve a dense model, or serve this one without NEX."
        )
    if not isinstance(getattr(text, "intermediate_size", None), int):
        raise InputError(
            f"{config.model_config.model} ({', '.join(config.model_config.architectures)}) has no gated MLP that NEX "
            "can read: its configuration names no intermediate_size. Serve another model, or this one without NEX."
        )


def local_folder(config: Any) -> Path:
    """Return the folder that the model's files are in; a model of the Hugging Face hub is downloaded, as vLLM would."""
    model = config.model_config.model
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model,
            revision=config.model_config.revision,
            cache_dir=config.load_config.download_dir,
            allow_patterns=["*.json", "*.safetensors"],
        )
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise InputError(
            f"The files of {model}, which the weights are checked against, could not be had from the Hugging Face hub "
            f"({type(error).__name__}); give a model's folder."
        ) from None
    return Path(folder)


def _resolve(settings: NexSettings, config: Any) -> ResolvedSettings:
    """Check the weights file and the selector's against the model, and take from them what was left open."""
    file = path = None
    if settings.weights is not None:
        path = Path(settings.weights).absolute()
        file = load_weights(path)
    selector = selector_path = None
    if settings.selector_file is not None:
        selector_path = Path(settings.selector_file).absolute()
        selector = load_selector(selector_path)
    part = resolve_part(settings, None if file is None else file.meta, config)
    resolved = ResolvedSettings(
        weights=None if path is None else str(path),
        top_k=settings.top_k or (DEFAULT_TOP_K if file is None else file.meta.top_k),
        row_tokens=settings.row_tokens or (DEFAULT_ROW_TOKENS if file is None else file.meta.row_tokens),
        teacher_forced=settings.teacher_forced,
        allow_lora=settings.allow_lora,
        accept_other_model=settings.accept_other_model,
        logprobs_mode=config.model_config.logprobs_mode,
        extract=settings.extract or (None if selector is None else selector.extract),
        deepconf_window=settings.deepconf_window
        or (DEFAULT_DEEPCONF_WINDOW if selector is None else selector.deepconf_window),
        selector_file=None if selector_path is None else str(selector_path),
        coefficients=None if selector is None else dict(selector.coefficients),
        part=part.name,
        reasoning_end=part.end,
        reasoning_end_token=part.end_token,
    )
    if file is not None and path is not None:
        _check_weights(file, path, resolved, config)
        _log_diagnostics(file, path)
    if selector is not None and selector_path is not None:
        _check_selector(selector, selector_path, resolved, None if file is None else weights_digest(file))
    return resolved


def _check_selector(file: SelectorFile, path: Path, settings: ResolvedSettings, digest: str | None) -> None:
    """Refuse a learned selector that reads what this engine does not have or measures otherwise."""
    if file.extract is not None:
        try:
            parse_extraction(file.extract)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    check_selector_fits(
        file,
        extract=settings.extract,
        deepconf_window=settings.deepconf_window,
        row_tokens=settings.row_tokens,
        top_k=settings.top_k,
        has_weights=settings.weights is not None,
        source=path,
        part=settings.part,
        reasoning_end=settings.reasoning_end or "",
        weights_digest=digest,
    )
    if "logprob" in file.selector.needs and settings.logprobs_mode != OWN_LOGPROBS:
        raise InputError(
            f"{path} chooses by the model's own log-probabilities among others, but this engine was started with "
            f"--logprobs-mode {settings.logprobs_mode}; start it with {OWN_LOGPROBS}."
        )


def _log_diagnostics(file: WeightsFile, path: Path) -> None:
    """Say in the log what the calibration said about itself; nothing where the file does not tell."""
    if file.meta.diagnostics is None:
        return
    diagnostics = decode_diagnostics(file.meta.diagnostics, f"{path}: metadata `diagnostics`")
    numbers = [f"{name} {value:.4g}" for name, value in asdict(diagnostics).items() if isinstance(value, (int, float))]
    logger.info("The weights %s were calibrated with: %s.", path, ", ".join(numbers))
    if diagnostics.warnings:
        logger.warning("The calibration of %s warns: %s.", path, "; ".join(diagnostics.warnings))


def _check_weights(file: WeightsFile, path: Path, settings: ResolvedSettings, config: Any) -> None:
    """Refuse weights that do not fit the model, and say which of them only fit because the settings allow it."""
    text = config.model_config.hf_text_config
    fingerprint = model_fingerprint(local_folder(config))
    is_other = check_fits(
        file,
        model_fingerprint=fingerprint,
        num_layers=text.num_hidden_layers,
        intermediate_size=text.intermediate_size,
        top_k=settings.top_k,
        part=settings.part,
        reasoning_end=settings.reasoning_end,
        source=path,
        accept_other_model=settings.accept_other_model,
    )
    if is_other:
        logger.warning(
            "The weights %s were calibrated on %s (fingerprint %s), but %s (fingerprint %s) is served. They are used "
            "because accept_other_model is set.",
            path,
            file.meta.model,
            file.meta.model_fingerprint,
            config.model_config.model,
            fingerprint,
        )
    if settings.allow_lora and config.lora_config is not None:
        logger.warning("Requests with a LoRA adapter are scored with the weights of the model without it (allow_lora).")
