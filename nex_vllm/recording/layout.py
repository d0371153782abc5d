"""Where each neuron of the model stands in the record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, MAX_LAYER_WIDTH
from nex_vllm.errors import InputError


@dataclass(frozen=True, slots=True)
class NeuronLayout:
    """All layers side by side: neuron ``first_unit + unit`` of ``layer`` is column ``layer * width + unit``.

    Attributes:
        num_layers: number of layers.
        width: units that are held of each layer; all of them but for tensor parallelism.
        first_unit: number of the first one in the unsharded layer.
        ranks: how many such parts a layer has.
    """

    num_layers: int
    width: int
    first_unit: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.width * self.ranks > MAX_LAYER_WIDTH:
            raise InputError(
                f"The model's MLP layers are {self.width * self.ranks} units wide, but a neuron key holds "
                f"{KEY_UNIT_BITS} bits ({MAX_LAYER_WIDTH} units); NEX cannot record this model."
            )

    @property
    def num_neurons(self) -> int:
        """Neurons of all layers together, as far as they are held here."""
        return self.num_layers * self.width

    def keys(self, columns: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Turn columns of the record into keys ``layer << 16 | unit`` (eq. 17)."""
        layer, unit = np.divmod(columns, self.width)
        keys: npt.NDArray[np.uint32] = ((layer << KEY_UNIT_BITS) | (unit + self.first_unit)).astype(np.uint32)
        return keys

    def dense(self, keys: npt.NDArray[np.uint32], values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Spread values by key over all columns, 0 elsewhere; float32 [num_neurons]."""
        result = np.zeros(self.num_neurons, dtype=np.float32)
        wide = keys.astype(np.int64)
        layer, unit = wide >> KEY_UNIT_BITS, (wide & (MAX_LAYER_WIDTH - 1)) - self.first_unit
        held = (unit >= 0) & (unit < self.width)
        result[(layer * self.width + unit)[held]] = values[held]
        return result
