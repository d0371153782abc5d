"""An engine in this process, driven one step at a time, so that every response is delivered when it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Self

from typer import echo

from nex_vllm.cli.model import ModelFacts
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.quiet import quiet_vllm
from nex_vllm.cli.report import describe_error
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import Prompt


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request to the engine.

    Attributes:
        tag: anything; comes back with the result.
        token_ids: the prompt.
        params: vLLM's sampling parameters with the NEX keywords.
    """

    tag: Any
    token_ids: list[int]
    params: Any


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What became of one request: vLLM's output, or the reason why the engine did not take it."""

    tag: Any
    output: Any = None
    refusal: str | None = None


class Session:
    """A started engine with NEX on; a context manager that ends the engine and its worker processes.

    Args:
        model: what to load.
        settings: NEX's own, for ``additional_config``.
        verbose: let vLLM log and draw its bars.
        engine_options: vLLM's own, by the names of their fields.

    Raises:
        InputError: NEX cannot work with this model or these settings.
        NexError: the engine did not start.
    """

    def __init__(
        self, model: ModelFacts, settings: dict[str, Any], *, verbose: bool = False, **engine_options: Any
    ) -> None:
        echo(f"starting the engine on {model.folder} ...", err=True)
        quiet_vllm(verbose)
        from nex_vllm.plugin.offline import LLM
        from nex_vllm.plugin.settings import is_active

        options = {"disable_log_stats": True, "use_tqdm_on_load": verbose, **engine_options}
        try:
            with _workers_without_interrupt():
                self._llm = LLM(str(model.folder), additional_config={"nex": settings}, **options)
        except InputError:
            raise
        except Exception as error:
            raise NexError(
                f"vLLM could not start an engine on {model.folder} ({describe_error(error)}); run again with --verbose "
                "for its own messages"
            ) from error
        if not is_active(self._llm.llm_engine.vllm_config):
            raise NexError(
                "vLLM did not load the plugin `nex`; take it into VLLM_PLUGINS, or unset that variable, and see that "
                "nex-vllm is installed beside vLLM"
            )
        config = self._llm.model_config.hf_text_config
        served = (config.num_hidden_layers, config.intermediate_size)
        if served != (model.num_layers, model.intermediate_size):
            raise InputError(
                f"vLLM runs {model.name} with {served[0]} layers of {served[1]} units, but its config.json says "
                f"{model.num_layers} of {model.intermediate_size}; leave out the engine option that changes its shape"
            )

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the engine."""
        self._llm.llm_engine.engine_core.shutdown()

    @property
    def context(self) -> int:
        """Tokens that prompt and response may have together."""
        return int(self._llm.model_config.max_model_len)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Tokenise a prompt as vLLM's own entry points do: text as it stands, messages by the chat template.

        Raises:
            ValueError: it is longer than the context, or the model has no usable chat template.
        """
        from nex_vllm.plugin.offline import ChatParams, VLLMClientError

        renderer = self._llm.renderer
        try:
            if prompt.messages is None:
                (rendered,) = renderer.render_cmpl([{"prompt": prompt.prompt}])
            else:
                chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
                # The template writes the special tokens itself.
                tokenization = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
                _, (rendered,) = renderer.render_chat([prompt.messages], chat, tokenization)
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        return list(rendered["prompt_token_ids"])

    def response_tokens(self, text: str) -> list[int]:
        """Tokenise a response's text, without special tokens around it."""
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))

    def run(self, requests: Iterable[EngineRequest]) -> Iterator[EngineResult]:
        """Serve requests and yield each when it ends; a bounded number is taken from ``requests`` ahead.

        Ctrl-C is held back until a step is complete and its ended requests have been yielded; a second one is not.

        Raises:
            InterruptedRunError: Ctrl-C; every request that had ended was yielded before.
            NexError: the engine failed.
        """
        from nex_vllm.plugin.offline import VLLMClientError

        engine = self._llm.llm_engine
        scheduler = engine.vllm_config.scheduler_config
        # On the CPU, vLLM 0.32 cannot prefill a request that has a seed in chunks ("CPU Generator does not use
        # offset"): no more prompts are handed over between two steps than one step computes whole.
        at_once = scheduler.max_num_batched_tokens - scheduler.max_num_seqs
        waiting = iter(requests)
        request = next(waiting, None)
        under_way: dict[str, Any] = {}
        new_tokens = 0
        with _held_interrupt() as interrupted:
            for number in range(1 << 62):
                # Takes one request a turn until enough are under way, then steps until there is room again.
                fits = new_tokens == 0 or new_tokens + len(request.token_ids if request else ()) <= at_once
                if request is not None and fits and len(under_way) < scheduler.max_num_seqs:
                    try:
                        engine.add_request(str(number), self._rendered(request.token_ids), request.params)
                        under_way[str(number)] = request.tag
                        new_tokens += len(request.token_ids)
                    except (ValueError, VLLMClientError) as error:
                        yield EngineResult(request.tag, refusal=" ".join(str(error).split()))
                    request = next(waiting, None)
                elif under_way:
                    new_tokens = 0
                    for output in _step(engine):
                        if output.finished:
                            yield EngineResult(under_way.pop(output.request_id), output)
                else:
                    return
                if interrupted.is_set():
                    raise InterruptedRunError

    def _rendered(self, token_ids: list[int]) -> Any:
        (rendered,) = self._llm.renderer.render_cmpl([{"prompt_token_ids": token_ids}])
        return rendered


def _step(engine: Any) -> list[Any]:
    try:
        return list(engine.step())
    except NexError:
        raise
    except Exception as error:
        raise NexError(
            f"the engine failed ({describe_error(error)}); run again with --verbose for its own messages"
        ) from error


@contextlib.contextmanager
def _held_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that it does not tear a step or a write; the second acts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def hold(_signum: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    plain = signal.signal(signal.SIGINT, hold)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, plain)


@contextlib.contextmanager
def _workers_without_interrupt() -> Iterator[None]:
    """Start child processes with Ctrl-C blocked, which a terminal sends to them too.

    vLLM's workers would end at once, in the middle of a step; they end when this process ends its engine, or dies.
    """
    plain_start = BaseProcess.start

    def start(self: BaseProcess) -> None:
        # The mask of blocked signals is inherited, by forked and by spawned processes.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            plain_start(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    BaseProcess.start = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        BaseProcess.start = plain_start  # type: ignore[method-assign]
