"""The method in dicts and loops, in the paper's symbols: slow, and meant to be believed at sight.

Written from the specification and the paper alone. Rows are given as lists of dicts ``{k: A_kr}``; everything is
Python floats, sums are exactly rounded (`math.fsum`).
"""

# ruff: noqa: N806 - the paper's symbols

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass, field

from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

EPS = 1e-6


@dataclass
class Response:
    """``A[r][k]`` is the mass of key k in row r, ``T[r]`` the tokens of row r; rows count from 0 here."""

    A: list[dict[int, float]]
    T: list[int]


def novelty_slopes(y: Response) -> list[float]:
    """Eq. 1."""
    s, seen = [], set()
    for r in range(len(y.A)):
        new = set(y.A[r]) - seen
        s.append(len(new) / y.T[r])
        seen |= new
    return s


def observations(s: list[float]) -> list[float]:
    """Eqs. 18-20."""
    y = [math.log(1 + s_r) for s_r in s]
    x = [math.log(1 + r) for r in range(1, len(s) + 1)]
    # `statistics.mean` is exact, so that equal slopes leave residuals of exactly 0.
    y_mean, x_mean = statistics.mean(y), statistics.mean(x)
    b = math.fsum((x_r - x_mean) * (y_r - y_mean) for x_r, y_r in zip(x, y, strict=True)) / math.fsum(
        (x_r - x_mean) ** 2 for x_r in x
    )
    residual = [(y_r - y_mean) - b * (x_r - x_mean) for x_r, y_r in zip(x, y, strict=True)]
    median = statistics.median(residual)
    mad = statistics.median(abs(e - median) for e in residual)
    return [(e - median) / (mad + EPS) for e in residual]


def log_probability(path: tuple[int, ...], z: list[float], mu: list[float], var: list[float], rho: float) -> float:
    """Joint log probability of a state path and the observations (eqs. 21, 22)."""
    total = math.log(0.5)
    for q, q_next in itertools.pairwise(path):
        total += math.log(rho if q == q_next else 1 - rho)
    for q, z_r in zip(path, z, strict=True):
        total -= 0.5 * (math.log(2 * math.pi * var[q]) + (z_r - mu[q]) ** 2 / var[q])
    return total


def viterbi(z: list[float], mu: list[float], var: list[float], rho: float) -> list[int]:
    """Most likely state path."""

    def emission(q: int, z_r: float) -> float:
        return -0.5 * (math.log(var[q]) + (z_r - mu[q]) ** 2 / var[q])

    best = [(emission(q, z[0]), [q]) for q in (0, 1)]
    for z_r in z[1:]:
        best = [
            max(
                (
                    (logp + math.log(rho if path[-1] == q else 1 - rho) + emission(q, z_r), [*path, q])
                    for logp, path in best
                ),
                key=lambda candidate: candidate[0],
            )
            for q in (0, 1)
        ]
    return max(best, key=lambda candidate: candidate[0])[1]


def smooth(phases: str, min_run: int) -> str:
    """Minimum run length; phases is a string of "E" and "X"."""
    while True:
        runs = ["".join(group) for _, group in itertools.groupby(phases)]
        short = [i for i, run in enumerate(runs) if len(run) < min_run]
        if len(runs) <= 1 or not short:
            return phases
        i = short[0]
        left = runs[i - 1] if i > 0 else ""
        right = runs[i + 1] if i + 1 < len(runs) else ""
        longer = max(left, right, key=len)
        runs[i] = longer[0] * len(runs[i])
        phases = "".join(runs)


def segment(s: list[float], rho: float, min_run: int) -> str:
    """Section 3 of the specification; the mixture is sklearn's, the decoding is not hmmlearn's."""
    if len(s) < 4:
        return "X" * len(s)
    z = observations(s)
    if max(z) - min(z) < 1e-12:
        return "X" * len(s)
    with threadpool_limits(1):  # or these few numbers take 16 ms in a pool of threads
        mixture = GaussianMixture(2, covariance_type="diag", random_state=0).fit([[z_r] for z_r in z])
    mu, var = [float(m) for m in mixture.means_.ravel()], [float(v) for v in mixture.covariances_.ravel()]
    e = 0 if mu[0] >= mu[1] else 1
    return smooth("".join("E" if q == e else "X" for q in viterbi(z, mu, var, rho)), min_run)


def cycles(phases: str) -> list[tuple[list[int], list[int]]]:
    """Rows (E_i, X_i) of every cycle."""
    runs, at = [], 0
    for phase, group in itertools.groupby(phases):
        length = len(list(group))
        runs.append((phase, list(range(at, at + length))))
        at += length
    return [(rows, next_rows) for (phase, rows), (_, next_rows) in itertools.pairwise(runs) if phase == "E"]


@dataclass
class Calibration:
    """Eqs. 2-11 over any number of responses."""

    rho: float = 0.95
    min_run: int = 2
    credit: str = "introduced"
    m_plus: dict[int, list[float]] = field(default_factory=dict)
    m_minus: dict[int, list[float]] = field(default_factory=dict)
    num_cycles: int = 0
    num_effective: int = 0
    num_redundant: int = 0

    def add(self, y: Response, phases: str | None = None) -> None:
        s = novelty_slopes(y)
        phases = segment(s, self.rho, self.min_run) if phases is None else phases
        first_row: dict[int, int] = {}
        for r, row in enumerate(y.A):
            for k in row:
                first_row.setdefault(k, r)
        found, reuse = cycles(phases), []
        if not found:
            return
        N = [{k for r in E for k in y.A[r] if self.credit == "all_active" or first_row[k] == r} for E, _ in found]
        for N_i, (_, X) in zip(N, found, strict=True):
            reused = math.fsum(a for r in X for k, a in y.A[r].items() if k in N_i)
            total = math.fsum(a for r in X for a in y.A[r].values())
            reuse.append(reused / (total + EPS))
        for N_i, (E, X), reuse_i in zip(N, found, reuse, strict=True):
            self.num_cycles += 1
            progress = reuse_i - statistics.median(reuse)
            s_E, s_X = statistics.median(s[r] for r in E), statistics.median(s[r] for r in X)
            cons = min(max(1 - s_X / (s_E + EPS), 0), 1)
            strength = s_E - statistics.median(s)
            if not strength > 0:
                continue
            effective = progress > 0 and cons > 0
            self.num_effective += effective
            self.num_redundant += not effective
            for k in N_i:
                if self.credit == "all_active":
                    alpha = math.fsum(y.A[r].get(k, 0.0) for r in E)
                else:
                    alpha = y.A[first_row[k]][k]
                if effective:
                    self.m_plus.setdefault(k, []).append(alpha * progress * cons)
                else:
                    self.m_minus.setdefault(k, []).append(alpha * abs(progress))

    def evidence(self) -> dict[int, tuple[float, float]]:
        both = {
            k: (math.fsum(self.m_plus.get(k, [])), math.fsum(self.m_minus.get(k, [])))
            for k in self.m_plus.keys() | self.m_minus.keys()
        }
        return {k: m for k, m in sorted(both.items()) if m != (0.0, 0.0)}

    def weights(self) -> dict[int, float]:
        """Eq. 11."""
        return {k: math.tanh(math.log((p + EPS) / (n + EPS))) for k, (p, n) in self.evidence().items()}


def masses(b: dict[int, float], w: dict[int, float]) -> tuple[float, float, float]:
    """PosMass, AbsMass, TotMass (eqs. 12, 13)."""
    return (
        math.fsum(b_k * max(w.get(k, 0.0), 0.0) for k, b_k in b.items()),
        math.fsum(b_k * abs(w.get(k, 0.0)) for k, b_k in b.items()),
        math.fsum(b.values()),
    )
