"""Find the gated MLPs of a loaded vLLM model, and put a tap behind each one's activation."""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.layers import activation

from nex_vllm.errors import InputError
from nex_vllm.recording.layout import NeuronLayout
from nex_vllm.recording.ranks import Ranks
from nex_vllm.recording.record import Record
from nex_vllm.recording.tapped import TappedActivation

# act(gate) * up, the product that the down-projection reads. Others (clamped, sparse or interleaved gates) compute
# something else under a similar name.
GATED_ACTIVATIONS = (activation.SiluAndMul, activation.GeluAndMul)


def decoder_mlps(model: nn.Module, num_hidden_layers: int) -> list[nn.Module]:
    """Return the text decoder's MLPs in layer order.

    Only the language model's own layer stack is searched, so a vision tower or a draft model is never touched.

    Raises:
        InputError: for a model without a gated MLP in every layer, or with experts; it says which and why.
    """
    name = type(model).__name__
    language_model = _attribute(model, "get_language_model")() if hasattr(model, "get_language_model") else model
    stack = getattr(getattr(language_model, "model", None), "layers", None)
    if stack is None or len(stack) != num_hidden_layers:
        raise InputError(f"{name} has no stack of {num_hidden_layers} decoder layers that NEX knows how to read.")
    mlps = []
    for index, layer in enumerate(stack):
        experts = next((type(m).__name__ for m in layer.modules() if "MoE" in type(m).__name__), None)
        if experts is not None:
            raise InputError(
                f"{name} has mixture-of-experts layers (layer {index}: {experts}); NEX reads dense gated MLPs only. "
                "Serve a dense model, or serve this one without NEX."
            )
        found = [m for m in layer.modules() if isinstance(getattr(m, "act_fn", None), GATED_ACTIVATIONS)]
        if len(found) != 1 or not hasattr(found[0], "down_proj"):
            kinds = ", ".join(cls.__name__ for cls in GATED_ACTIVATIONS)
            raise InputError(
                f"{name} has no gated MLP in layer {index}: NEX reads the product of an activation and a gate "
                f"({kinds}) and found {len(found)} of them there. Serve another model, or this one without NEX."
            )
        mlps.append(found[0])
    return mlps


def layout_of(mlps: list[nn.Module], ranks: Ranks | None) -> NeuronLayout:
    """Return the record's layout for these MLPs, or for this rank's part of them.

    Raises:
        InputError: for layers of different width, or of more units than a key can name.
    """
    # The weight's own shape cannot be asked: the CPU backend empties it when it packs it.
    widths = {int(_attribute(mlp, "down_proj").input_size_per_partition) for mlp in mlps}
    if len(widths) != 1:
        raise InputError(f"The model's MLP layers differ in width ({sorted(widths)}); NEX needs them equal.")
    width = widths.pop()
    if ranks is None:
        return NeuronLayout(num_layers=len(mlps), width=width)
    return NeuronLayout(num_layers=len(mlps), width=width, first_unit=ranks.rank * width, ranks=ranks.size)


def place_taps(mlps: list[nn.Module], record: Record) -> None:
    """Put a tap behind every MLP's activation; to be called before the model is traced."""
    for layer, mlp in enumerate(mlps):
        plain = _attribute(mlp, "act_fn")
        mlp.act_fn = TappedActivation(plain, record, layer, is_silu=isinstance(plain, activation.SiluAndMul))


def _attribute(module: nn.Module, name: str) -> Any:
    return getattr(module, name)
