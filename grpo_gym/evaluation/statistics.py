"""pass@k, intervals and paired comparison. Problems are the independent units; their repeats are not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
RESAMPLES = 2000
COMPARISON_RESAMPLES = 10_000
_CHUNK_VALUES = 4_000_000
"""Problems x resamples drawn at once: keeps memory under about 100 MB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A: the mean difference, its 95% interval, and a two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of `k` samples is correct, estimated from `num_samples` without bias.

    1 - C(n-c, k) / C(n, k), as the product 1 - prod_{i=n-c+1..n} (1 - k/i), which cannot overflow
    (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1).

    Raises:
        ValueError: `k` is not between 1 and `num_samples`, or more are correct than there are.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of a problem, not {num_samples}.")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} samples cannot be correct.")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [2**exponent for exponent in range(limit.bit_length())] if limit > 0 else []


def share_interval(successes: Sequence[int], trials: Sequence[int]) -> Estimate:
    """A share of samples with its Wilson interval, where the samples of one problem belong together.

    Wilson's interval (1927) with the effective number of samples n_eff = p (1 - p) / var(p), var being the
    cluster-robust variance of the ratio sum(successes) / sum(trials): as many independent samples would be
    as uncertain. n_eff lies between the number of problems (repeats all alike) and the number of samples
    (repeats independent); where nothing varies, at 0 and at 1, it is the number of problems. Unlike a
    bootstrap the interval has a width there, too.

    Args:
        successes: correct samples of each problem.
        trials: samples of each problem; problems without any are left out.

    Raises:
        ValueError: no samples.
    """
    counts = np.asarray(trials, dtype=np.float64)
    hits = np.asarray(successes, dtype=np.float64)[counts > 0]
    counts = counts[counts > 0]
    if not len(counts):
        raise ValueError("no samples: there is no share to estimate.")
    share = float(hits.sum() / counts.sum())
    return wilson_interval(share, _effective_samples(share, hits, counts))


def _effective_samples(share: float, hits: Array, counts: Array) -> float:
    problems, samples = float(len(counts)), float(counts.sum())
    if share in (0.0, 1.0):
        return problems
    variance = float(np.square(hits - share * counts).sum()) / samples**2
    if variance <= 0:
        return samples
    return min(max(share * (1 - share) / variance, problems), samples)


def wilson_interval(share: float, num_trials: float) -> Estimate:
    """Wilson's 95% interval (1927) of a share seen in `num_trials` independent trials."""
    centre = share + _Z**2 / (2 * num_trials)
    half = _Z * math.sqrt(share * (1 - share) / num_trials + _Z**2 / (4 * num_trials**2))
    scale = 1 + _Z**2 / num_trials
    # Rounding must not push the share out of its own interval at 0 and 1.
    return Estimate(share, min(share, max(0.0, (centre - half) / scale)), max(share, (centre + half) / scale))


def mean_interval(totals: Sequence[float], counts: Sequence[int], seed: int = 0) -> Estimate:
    """A mean of samples with a percentile interval, bootstrapped over problems (clusters of samples).

    Args:
        totals: sum over the samples of each problem.
        counts: samples of each problem; problems without any are left out.
        seed: of the resampling; the same numbers give the same interval.

    Raises:
        ValueError: no samples.
    """
    weights = np.asarray(counts, dtype=np.float64)
    sums = np.asarray(totals, dtype=np.float64)[weights > 0]
    weights = weights[weights > 0]
    if not len(weights):
        raise ValueError("no samples: there is no mean to estimate.")
    means = np.concatenate(
        [
            sums[index].sum(axis=1) / weights[index].sum(axis=1)
            for index in _resamples(len(sums), RESAMPLES, seed)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(sums.sum() / weights.sum()), float(low), float(high))


def paired_bootstrap(differences: Sequence[float], seed: int = 0) -> Difference:
    """Whether B is better than A on the same problems.

    The percentile interval of the mean difference over resampled problems, and the two-sided p-value of
    the bootstrap centred on the null hypothesis (Efron & Tibshirani 1993, chapter 16): how often a resampled
    mean lies as far from the observed one as that does from 0, with one added so that it is never 0.

    Args:
        differences: B minus A, one number per problem.
        seed: of the resampling.

    Raises:
        ValueError: no problems.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        raise ValueError("no problems: there is nothing to compare.")
    observed = float(values.mean())
    means = np.concatenate(
        [values[index].mean(axis=1) for index in _resamples(len(values), COMPARISON_RESAMPLES, seed)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    as_far = int((np.abs(means - observed) >= abs(observed) - 1e-12).sum())
    return Difference(observed, float(low), float(high), (1 + as_far) / (1 + len(means)))


def _resamples(num_problems: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices of problems drawn with replacement, (resamples, num_problems) at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_VALUES // num_problems)
    for start in range(0, count, rows):
        yield generator.integers(num_problems, size=(min(rows, count - start), num_problems))
