"""Welch's t-test, the number of seeds that a difference needs, and outliers."""

import math
import warnings
from collections.abc import Sequence
from statistics import mean, median, stdev, variance
from typing import Any, NamedTuple

from edkd.errors import UserError

POWER = 0.8
"""Probability with which a true difference is to be found."""

MOST_SEEDS = 10_000
"""Larger numbers of seeds are not computed."""

_SHARES = 200
"""Points of the integral in `power`."""

_CUTOFFS = {
    3: 22.1,
    4: 6.9,
    5: 8.0,
    6: 5.5,
    7: 5.8,
    8: 4.9,
    9: 5.1,
    10: 4.6,
    12: 4.4,
    15: 4.3,
    20: 4.0,
    30: 3.8,
}
"""By number of values: the modified z-score that 5 % of samples of normal noise exceed.

The usual 3.5 is for large samples: it would mark a value in 29 % of samples of three.
"""

_SCALE = 0.6745
"""Median absolute deviation of normal noise, in standard deviations."""

_LEAST_DISTANCE = 0.5
"""Percentage points: values closer to the median are never outliers."""


class Welch(NamedTuple):
    """Welch's t-test of two samples, two-sided.

    Args:
        difference: of the means, first minus second.
        t: the statistic.
        df: degrees of freedom by Welch and Satterthwaite.
        p: probability of a |t| that is as large without a difference.
        low, high: confidence interval of the difference, at 1 - alpha.
    """

    difference: float
    t: float
    df: float
    p: float
    low: float
    high: float


def welch(first: Sequence[float], second: Sequence[float], alpha: float) -> Welch | None:
    """Welch's t-test, for unequal variances.

    Returns None where there is no test: a sample has one value, or neither has a variance.

    Args:
        first, second: values, one per seed.
        alpha: significance level, above 0 and below 1.

    Raises:
        UserError: scipy is missing.
    """
    if min(len(first), len(second)) < 2:
        return None
    if variance(first) + variance(second) == 0:
        return None

    stats = _scipy_stats()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of the samples may have no variance
        test = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(1 - alpha)
    return Welch(
        difference=mean(first) - mean(second),
        t=float(test.statistic),
        df=float(test.df),
        p=float(test.pvalue),
        low=float(interval.low),
        high=float(interval.high),
    )


def seeds_needed(first: Sequence[float], second: Sequence[float], alpha: float) -> int | None:
    """Seeds of each of two methods with which Welch's test finds the observed difference.

    That is the smallest number with a power of at least POWER, if means and standard deviations are
    those of the samples. For few seeds, 15.7 (sd / difference)^2 is too low.

    Returns None where nothing can be said: a sample has one value, there is no difference, or no
    variance; MOST_SEEDS where it is at least that.

    Raises:
        UserError: scipy is missing.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = abs(mean(first) - mean(second))
    variances = (variance(first), variance(second))
    if difference == 0 or sum(variances) == 0:
        return None

    # The normal approximation is never above the exact number.
    normal = _scipy_stats().norm
    quantiles = float(normal.ppf(1 - alpha / 2)) + float(normal.ppf(POWER))
    approximation = sum(variances) * (quantiles / difference) ** 2
    if approximation >= MOST_SEEDS:
        return MOST_SEEDS

    number = max(2, math.ceil(approximation))
    while power(difference, variances, number, alpha) < POWER:
        number += 1
    return number


def power(difference: float, variances: tuple[float, float], number: int, alpha: float) -> float:
    """Probability that Welch's test of two samples of normal noise, two-sided, finds a difference.

    Of the sum of the two sample variances over their sigma^2, the first has a share that is beta
    distributed, and that sum is independent of the share. For a given share, Welch's degrees of
    freedom are fixed, and his statistic is a noncentral t times a factor. The result is the mean
    over the shares. With equal variances it is slightly below the power of Student's test.

    Args:
        difference: of the means, above 0.
        variances: of the two; at least one is above 0.
        number: of values in each sample, at least 2.
        alpha: significance level.
    """
    stats = _scipy_stats()
    import numpy as np  # scipy needs it, too

    df = number - 1
    steps = [(step + 0.5) / _SHARES for step in range(_SHARES)]
    share = stats.beta.ppf(steps, df / 2, df / 2)

    # The sample variances at each share, up to a factor that both have.
    first = share * variances[0]
    second = (1 - share) * variances[1]
    welch_df = df * (first + second) ** 2 / (first**2 + second**2)
    factor = (sum(variances) / 2 / (first + second)) ** 0.5
    limit = stats.t.ppf(1 - alpha / 2, welch_df) / factor

    # The lower tail is NaN where it is too small for scipy.
    shift = difference * math.sqrt(number / sum(variances))
    upper = stats.nct.sf(limit, 2 * df, shift)
    lower = np.nan_to_num(stats.nct.cdf(-limit, 2 * df, shift))
    return float((upper + lower).mean())


def outliers(values: Sequence[float]) -> list[int]:
    """Places of values that lie far from the others, by the modified z-score.

    The score is 0.6745 |value - median| / (median absolute deviation). Its limit depends on the
    number of values, so that 5 % of samples of normal noise have an outlier.

    Args:
        values: accuracies in percent; fewer than three have no outlier.
    """
    if len(values) < min(_CUTOFFS):
        return []
    centre = median(values)
    distances = [abs(value - centre) for value in values]
    spread = median(distances)

    known = max(number for number in _CUTOFFS if number <= len(values))
    limit = max(_LEAST_DISTANCE, _CUTOFFS[known] * spread / _SCALE)
    return [place for place, distance in enumerate(distances) if distance > limit]


def deviation_of(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for one value."""
    return stdev(values) if len(values) > 1 else None


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise UserError("a t-test needs scipy: pip install scipy") from None
    return stats
