"""pass@k, intervals and paired comparison. Problems are the independent units; their repeats are not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
RESAMPLES = 2000
COMPARISON_RESAMPLES = 10_000
MIN_PROBLEMS = 6
"""Fewer differences cannot be significant: all of the same sign, five have p = 2 / 2^5 = 0.0625."""
_EXACT_SIGNS = 20
_NEGLIGIBLE = 1e-12
"""Differences of means below this are rounding."""
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
    """B minus A: the mean difference, its 95% interval, and a two-sided p-value; None with too few problems."""

    mean: float
    low: float | None
    high: float | None
    p: float | None


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
    """A mean of samples with an expanded percentile interval, bootstrapped over problems (clusters of samples).

    See `_expanded_tail`. Where all problems have the same mean the bootstrap would have no width: see
    `_interval_of_equals`, which is Wilson's interval where that mean is 0 or 1.

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
    mean = float(sums.sum() / weights.sum())
    if np.ptp(sums / weights) < _NEGLIGIBLE:
        return Estimate(mean, *_interval_of_equals(mean, len(weights), lowest=0.0))
    means = np.concatenate(
        [
            sums[index].sum(axis=1) / weights[index].sum(axis=1)
            for index in _resamples(len(sums), RESAMPLES, seed)
        ]
    )
    return Estimate(mean, *_expanded_percentiles(means, len(sums)))


def paired_difference(differences: Sequence[float], seed: int = 0) -> Difference:
    """Whether B is better than A on the same problems.

    The interval is the expanded percentile interval of the mean difference over resampled problems
    (`_expanded_tail`), p that of the paired sign-flip permutation test (`_sign_flip_p`). With few problems
    some of it is None, since nothing can be concluded: five differences of the same sign have p = 0.0625.
    With fewer than `MIN_PROBLEMS` problems there is no interval; where fewer than that differ, but some do,
    there is no p, and the interval includes 0.

    Args:
        differences: B minus A, one number per problem.
        seed: of the resampling.

    Raises:
        ValueError: no problems.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        raise ValueError("no problems: there is nothing to compare.")
    values = np.where(np.abs(values) < _NEGLIGIBLE, 0.0, values)
    mean, num_different = float(values.mean()), int(np.count_nonzero(values))
    is_enough = num_different == 0 or num_different >= MIN_PROBLEMS
    p = _sign_flip_p(values[values != 0], seed) if is_enough else None
    if len(values) < MIN_PROBLEMS:
        return Difference(mean, None, None, p)
    low, high = _difference_interval(values, seed)
    return Difference(mean, *((low, high) if is_enough else (min(low, 0.0), max(high, 0.0))), p)


def _difference_interval(values: Array, seed: int) -> tuple[float, float]:
    if np.ptp(values) < _NEGLIGIBLE:
        return _interval_of_equals(float(values.mean()), len(values), lowest=-1.0)
    means = np.concatenate(
        [values[index].mean(axis=1) for index in _resamples(len(values), COMPARISON_RESAMPLES, seed)]
    )
    return _expanded_percentiles(means, len(values))


def _sign_flip_p(values: Array, seed: int) -> float:
    """Two-sided p that differences without direction sum up to at least as much (Fisher 1935, section 21).

    If A and B are alike, each problem's difference could as well have had the other sign. Up to
    `_EXACT_SIGNS` differences all signs are counted; of more, `COMPARISON_RESAMPLES` random ones, with one
    added so that p is never 0 (Phipson & Smyth 2010, "Permutation p-values should never be zero").

    Args:
        values: differences that are not 0: those count for nothing here. Without any p is 1.
        seed: of the random signs.
    """
    if not len(values):
        return 1.0
    as_far = abs(float(values.sum())) - 1e-9 * float(np.abs(values).sum())  # equal sums round differently
    if len(values) <= _EXACT_SIGNS:
        sums = values[:1]  # its sign may stay: turning all signs leaves the distance as it is
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= as_far).mean())
    generator = np.random.default_rng(seed)
    num_as_far = 0
    for rows in _chunks(len(values), COMPARISON_RESAMPLES):
        signs = generator.integers(2, size=(rows, len(values))) * 2.0 - 1.0
        num_as_far += int((np.abs(signs @ values) >= as_far).sum())
    return (1 + num_as_far) / (1 + COMPARISON_RESAMPLES)


def _expanded_percentiles(means: Array, num_problems: int) -> tuple[float, float]:
    tail = _expanded_tail(num_problems)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(num_problems: int) -> float:
    """Share of resampled means to leave out at each end for a 95% interval.

    Plain percentiles (0.025) are too narrow with few problems: the bootstrap's variance is (n-1)/n of what
    it should be, and it takes that as known. The expanded percentile interval makes up for both as a t interval
    does: the tail is that of the normal distribution beyond sqrt(n/(n-1)) x t(0.975, n-1) (Hesterberg 2015,
    "What Teachers Should Know about the Bootstrap", arXiv 1411.5279).
    """
    degrees = num_problems - 1
    return NormalDist().cdf(-math.sqrt(num_problems / degrees) * _t_quantile(degrees))


def _t_quantile(degrees: int) -> float:
    """Two-sided 95% quantile of Student's t (Abramowitz & Stegun 26.7.5): to 0.003 from 5 degrees of freedom on."""
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _interval_of_equals(value: float, num_problems: int, lowest: float) -> tuple[float, float]:
    """95% interval of a mean where all problems have the same value, between `lowest` and 1.

    Up to a share u of all problems may be of a kind that was not seen: the upper end of Wilson's interval for
    0 of n. They could all have the lowest or the highest value. A value beyond these is an end itself.
    """
    unseen = wilson_interval(0.0, num_problems).high
    lowest, highest = min(lowest, value), max(1.0, value)
    return value - unseen * (value - lowest), value + unseen * (highest - value)


def _chunks(num_problems: int, count: int) -> Iterator[int]:
    """Numbers of rows that add up to `count`, as many at a time as memory is meant for."""
    rows = max(1, _CHUNK_VALUES // num_problems)
    for start in range(0, count, rows):
        yield min(rows, count - start)


def _resamples(num_problems: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices of problems drawn with replacement, (resamples, num_problems) at a time."""
    generator = np.random.default_rng(seed)
    for rows in _chunks(num_problems, count):
        yield generator.integers(num_problems, size=(rows, num_problems))
