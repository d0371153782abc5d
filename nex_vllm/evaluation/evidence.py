"""What each prompt of a calibration says about each neuron, from which any part of it can be learned from again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from nex_vllm.algorithm.credit import DEFAULT_CREDIT, Credit, check_credit
from nex_vllm.algorithm.judgement import Judgement, judge_response
from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO, MIN_ROWS
from nex_vllm.algorithm.weights import NeuronWeights, signed_weights
from nex_vllm.errors import InputError
from nex_vllm.evaluation.sums import CandidateSums, Entries, add_up_rows, stack, union_of

if TYPE_CHECKING:
    from nex_vllm.storage import CachedResponse, CacheReader


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """``m+`` and ``m-`` of each prompt of a calibration (eqs. 9 and 10, summed over the prompt's responses).

    Attributes:
        prompts: ids [P], ascending.
        keys: uint32 [m], strictly ascending: the neurons with evidence, which are the columns.
        effective: float64 csr [P, m], ``m+``.
        redundant: float64 csr [P, m], ``m-``.
    """

    prompts: tuple[str, ...]
    keys: npt.NDArray[np.uint32]
    effective: csr_array
    redundant: csr_array

    def weights(self, multiplicity: npt.ArrayLike | None = None) -> NeuronWeights:
        """Return the weights of a calibration in which prompt p occurs ``multiplicity[p]`` times, once by default.

        All ones give the weights of `WeightAccumulator`, counts drawn with replacement a resampled calibration, ones
        and zeros a part of it. Neurons without evidence in that calibration are left out, as in a weights file.

        Args:
            multiplicity: [P], not negative.

        Raises:
            InputError: there is not one number for each prompt, or one is negative.
        """
        times = np.ones(len(self.prompts)) if multiplicity is None else np.asarray(multiplicity, dtype=np.float64)
        if times.shape != (len(self.prompts),) or not (times >= 0).all():
            raise InputError(
                f"multiplicities {list(times.shape)} were given, expected one number of at least 0 for each of "
                f"{len(self.prompts)} prompts"
            )
        effective, redundant = self.effective.T @ times, self.redundant.T @ times
        found = (effective > 0.0) | (redundant > 0.0)
        weights = signed_weights(effective[found], redundant[found])
        return NeuronWeights(self.keys[found], weights.astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A calibration in a form that can be cut, resampled and scored; responses in the order of prompt and sample.

    Attributes:
        evidence: of each prompt.
        sums: of each response [R], with a column for each neuron that has evidence.
        late_sums: the same over the last tenth of each response's rows, one row at least.
        prompt: int64 [R], index into ``evidence.prompts``, ascending.
        num_tokens: int64 [R].
        num_rows: int64 [R].
        num_cycles: int64 [R], E-X cycles, those that the strength gate kept out among them.
        effective_mass: all of ``m+``.
        first_cycle_mass: what of it comes from cycles whose E run starts at row 1.
    """

    evidence: Evidence
    sums: CandidateSums
    late_sums: CandidateSums
    prompt: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    num_rows: npt.NDArray[np.int64]
    num_cycles: npt.NDArray[np.int64]
    effective_mass: float
    first_cycle_mass: float

    @property
    def num_too_short(self) -> int:
        """Responses of too few rows to segment; they give no evidence."""
        return int((self.num_rows < MIN_ROWS).sum())

    @property
    def candidates(self) -> list[npt.NDArray[np.int64]]:
        """For each prompt the indices of its responses, int64 [n], the first sample first."""
        starts = np.searchsorted(self.prompt, np.arange(1, len(self.evidence.prompts)))
        return list(np.split(np.arange(len(self.prompt)), starts))

    def halves(self) -> npt.NDArray[np.bool_]:
        """Cut the prompts into two halves: bool [P], the same for the same ids, whatever their order.

        Prompts are put in the order of the SHA-256 of their ids and cut in the middle.
        """
        digests = [hashlib.sha256(prompt.encode()).digest() for prompt in self.evidence.prompts]
        order = sorted(range(len(digests)), key=digests.__getitem__)
        half = np.zeros(len(digests), dtype=np.bool_)
        half[order[: len(order) // 2]] = True
        return half


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """What is kept of one response."""

    prompt: str
    response: str
    num_tokens: int
    num_rows: int
    num_cycles: int
    sums: Entries
    late_sums: Entries
    effective: list[Entries]
    redundant: list[Entries]
    effective_mass: float
    first_cycle_mass: float


@dataclass(slots=True)
class CalibrationBuilder:
    """Gathers a `Calibration` from judged responses, added in any order.

    Memory grows with the number of responses, unlike that of `WeightAccumulator`, for diagnostics and resampled
    calibrations need them all: 8 bytes for each neuron that a response uses, 8 for each in its last tenth, and 12 for
    each that it gives evidence about, until `build` keeps the neurons with evidence only; while `build` runs, there are
    both forms. 60 prompts with 4 responses of 200,000 neurons each: about 400 MB for the first of these alone.

    Attributes:
        first_cycle: whether cycles whose E run starts at row 1 give evidence, as the method has it. Without them the
            others are judged as before.
    """

    first_cycle: bool = True
    _judged: list[_Judged] = field(default_factory=list)
    _scratch: KeyScratch = field(default_factory=KeyScratch)

    def add(self, rows: ResponseRows, prompt: str, judged: Judgement) -> None:
        """Take one response to the prompt of this id; nothing of its rows is kept."""
        self._scratch.reserve(key_space(rows))
        late = max(1, rows.num_rows // 10)
        effective: list[Entries] = []
        redundant: list[Entries] = []
        effective_mass = first_cycle_mass = 0.0
        for cycle, credit in zip(judged.cycles, judged.credits, strict=True):
            is_first = cycle.explore == 0
            if credit.counts and (self.first_cycle or not is_first):
                (effective if credit.effective else redundant).append((credit.keys, credit.evidence))
                mass = float(credit.evidence.sum()) if credit.effective else 0.0
                effective_mass += mass
                first_cycle_mass += mass if is_first else 0.0
        self._judged.append(
            _Judged(
                prompt=prompt,
                response=rows.response,
                num_tokens=rows.num_tokens,
                num_rows=rows.num_rows,
                num_cycles=len(judged.cycles),
                sums=self._sums(rows, 0),
                late_sums=self._sums(rows, max(0, rows.num_rows - late)),
                effective=effective,
                redundant=redundant,
                effective_mass=effective_mass,
                first_cycle_mass=first_cycle_mass,
            )
        )

    def build(self) -> Calibration:
        """Return the calibration; it does not depend on the order in which the responses were added."""
        judged = sorted(self._judged, key=lambda each: (each.prompt, *in_sample_order(each.response)))
        prompts = sorted({each.prompt for each in judged})
        number = {prompt: index for index, prompt in enumerate(prompts)}
        keys = union_of([keys for each in judged for keys, _ in (*each.effective, *each.redundant)])
        names = [each.response for each in judged]
        prompt = np.array([number[each.prompt] for each in judged], dtype=np.int64)

        def by_prompt(entries: Callable[[_Judged], list[Entries]]) -> csr_array:
            flat = [(row, *entry) for row, each in zip(prompt.tolist(), judged, strict=True) for entry in entries(each)]
            return _summed(flat, keys, len(prompts))

        return Calibration(
            evidence=Evidence(
                tuple(prompts), keys, by_prompt(lambda each: each.effective), by_prompt(lambda each: each.redundant)
            ),
            sums=stack(names, [each.sums for each in judged], keys),
            late_sums=stack(names, [each.late_sums for each in judged], keys),
            prompt=prompt,
            num_tokens=np.array([each.num_tokens for each in judged], dtype=np.int64),
            num_rows=np.array([each.num_rows for each in judged], dtype=np.int64),
            num_cycles=np.array([each.num_cycles for each in judged], dtype=np.int64),
            effective_mass=sum(each.effective_mass for each in judged),
            first_cycle_mass=sum(each.first_cycle_mass for each in judged),
        )

    def _sums(self, rows: ResponseRows, start: int) -> Entries:
        keys, values = add_up_rows(rows, start, rows.num_rows, self._scratch)
        return keys, values.astype(np.float32)


def gather_evidence(
    responses: Iterable[ResponseRows],
    prompts: Mapping[str, str],
    *,
    rho: float = DEFAULT_RHO,
    min_run: int = DEFAULT_MIN_RUN,
    credit: Credit = DEFAULT_CREDIT,
    first_cycle: bool = True,
) -> Calibration:
    """Judge recorded responses and keep what each prompt says, one response's rows in memory at a time.

    Args:
        responses: rows, as `CacheReader.rows` yields them.
        prompts: the prompt's id of each response, by the response's id (see :func:`prompt_ids`).
        rho: probability of staying in a state in the segmentation.
        min_run: shortest run of rows that the segmentation keeps.
        credit: which neurons a cycle credits.
        first_cycle: see `CalibrationBuilder`.

    Raises:
        InputError: an option is out of range, or the rows of a response are unusable.
    """
    check_credit(credit)
    builder, scratch = CalibrationBuilder(first_cycle), KeyScratch()
    for rows in responses:
        rows.validate()
        scratch.reserve(key_space(rows))
        judged = judge_response(rows, rho=rho, min_run=min_run, credit=credit, scratch=scratch)
        builder.add(rows, prompts[rows.response], judged)
    return builder.build()


def prompt_of(response: CachedResponse) -> str:
    """Return what responses to the same prompt have in common.

    That is the prompt's id or, where an earlier version recorded none, the prompt itself; a response without either
    is the only one to its prompt.
    """
    if response.prompt_id is not None:
        return response.prompt_id
    if response.messages is not None:
        return json.dumps(response.messages)
    return response.id if response.prompt is None else response.prompt


def prompt_ids(reader: CacheReader) -> dict[str, str]:
    """Return the prompt's id of each finished response of a cache, by the response's id.

    A cache that has no list of responses does not say which of them belong together: each has a prompt of its own.
    """
    if reader.num_listed is None:
        return {response: response for response in reader.finished}
    found: dict[str, str] = {}
    id_of: dict[str, str] = {}
    for response in reader.responses():
        found[response.id] = prompt_of(response)
        if response.prompt_id is not None:
            id_of.setdefault(prompt_of(replace(response, prompt_id=None)), response.prompt_id)
    # A cache that an earlier version began has responses without an id beside ones to the same prompt with one.
    return {response: id_of.get(prompt, prompt) for response, prompt in found.items()}


def in_sample_order(response: str) -> tuple[int, str]:
    """Return what puts PROMPT-2 before PROMPT-10."""
    return len(response), response


def _summed(
    entries: list[tuple[int, npt.NDArray[np.uint32], npt.NDArray[np.floating]]],
    keys: npt.NDArray[np.uint32],
    num_rows: int,
) -> csr_array:
    """Add up entries (row, keys, values) in a float64 csr [num_rows, len(keys)]."""
    rows = np.repeat(np.array([row for row, _, _ in entries], np.int64), [len(each) for _, each, _ in entries])
    columns = np.searchsorted(keys, np.concatenate([np.empty(0, np.uint32), *(each for _, each, _ in entries)]))
    values = np.concatenate([np.empty(0), *(each for _, _, each in entries)])
    summed = coo_array((values, (rows, columns)), shape=(num_rows, len(keys)))
    return summed.tocsr()
