"""Welch's t-test, the number of seeds, and outliers, against textbooks and simulations."""

import random
import sys
from statistics import median

import pytest

from edkd.errors import UserError
from edkd.results.statistics import (
    MOST_SEEDS,
    deviation_of,
    outliers,
    power,
    seeds_needed,
    welch,
)

# The first example of "Welch's t-test" in Wikipedia: t -2.46, 25.0 degrees of freedom, p 0.021.
FIRST = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
SECOND = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def test_a_textbook_example():
    test = welch(FIRST, SECOND, 0.05)
    assert test.t == pytest.approx(-2.46, abs=0.005)
    assert test.df == pytest.approx(25.0, abs=0.05)
    assert test.p == pytest.approx(0.021, abs=0.0005)
    assert test.difference == pytest.approx(20.82 - 22.98667, abs=1e-4)
    assert test.low < test.difference < test.high < 0


def test_by_hand():
    """Variances 1 and 4 of three values each: t = 3 / sqrt(5 / 3), df = (5/3)^2 / (17 / 18)."""
    test = welch([4.0, 5.0, 6.0], [0.0, 2.0, 4.0], 0.05)
    assert test.t == pytest.approx(3 / (5 / 3) ** 0.5)
    assert test.df == pytest.approx((5 / 3) ** 2 / (17 / 18))


def test_the_interval_excludes_zero_where_the_test_finds_a_difference():
    for alpha in (0.01, 0.05):
        test = welch(FIRST, SECOND, alpha)
        assert (test.high < 0) == (test.p < alpha)


def test_what_has_no_test():
    assert welch([70.0], [71.0, 72.0], 0.05) is None
    assert welch([70.0, 70.0], [71.0, 71.0], 0.05) is None


def test_one_sample_without_variance_has_a_test():
    test = welch([72.0, 72.0, 72.0], [70.0, 70.1, 70.2], 0.05)
    assert test.df == pytest.approx(2)
    assert test.p < 0.01


@pytest.mark.parametrize(("effect", "number"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_sample_sizes_of_cohen(effect, number):
    """Cohen's tables: two-sided, alpha 0.05, power 0.80."""
    equal = (1.0, 1.0)
    assert power(effect, equal, number, 0.05) >= 0.8 > power(effect, equal, number - 1, 0.05)


def test_seeds_for_a_difference():
    """A deviation of 0.25 and a difference of 0.3: 13; the normal approximation gives 11."""
    deviation = 0.25
    first = [70.0 - deviation, 70.0, 70.0 + deviation]
    assert seeds_needed(first, [each + 0.3 for each in first], 0.05) == 13
    approximation = 15.7 * (0.25 / 0.3) ** 2
    assert approximation == pytest.approx(11, abs=0.2)
    assert seeds_needed(first, [each + 0.5 for each in first], 0.05) == 6


def test_seeds_at_the_limits():
    first = [70.0, 70.1, 70.2]
    assert seeds_needed(first, first, 0.05) is None
    assert seeds_needed([70.0], [71.0, 72.0], 0.05) is None
    assert seeds_needed([70.0, 70.0], [71.0, 71.0], 0.05) is None
    assert seeds_needed(first, [each + 50 for each in first], 0.05) == 2
    assert seeds_needed(first, [each + 0.0001 for each in first], 0.05) == MOST_SEEDS


def test_a_stricter_level_needs_more_seeds():
    first = [70.0, 70.2, 70.4]
    second = [each + 0.3 for each in first]
    assert seeds_needed(first, second, 0.01) > seeds_needed(first, second, 0.05)


@pytest.mark.parametrize(
    ("difference", "variances", "number", "of_student"),
    [
        (5.6, (1.0, 1.0), 2, 0.79),
        (3.2, (1.0, 1.0), 3, 0.83),
        (2.0, (1.0, 0.01), 5, 0.96),
        (1.5, (4.0, 0.05), 8, 0.52),
    ],
)
def test_the_power_is_that_of_a_simulation(difference, variances, number, of_student):
    """It is well below that of Student's test, which assumes equal variances."""
    numpy = pytest.importorskip("numpy")
    stats = pytest.importorskip("scipy.stats")
    generator = numpy.random.default_rng(0)
    first, second = (
        generator.normal(mean, variance**0.5, (20_000, number))
        for mean, variance in zip((0, difference), variances, strict=True)
    )

    expected = {False: power(difference, variances, number, 0.05), True: of_student}
    for equal_var, share in expected.items():
        p = stats.ttest_ind(first, second, axis=1, equal_var=equal_var).pvalue
        assert (p < 0.05).mean() == pytest.approx(share, abs=0.012)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3, 6, 30])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_the_power_is_the_integral_over_the_deviations(number, alpha):
    """For all differences from none to a certain one: the mean over 300 x 300 deviations."""
    numpy = pytest.importorskip("numpy")
    stats = pytest.importorskip("scipy.stats")
    quantiles = (numpy.arange(300) + 0.5) / 300
    ratios = stats.chi2.ppf(quantiles, number - 1) / (number - 1)

    for variances in [(1.0, 1.0), (1.0, 0.04), (1.0, 0.0)]:
        # The squares of the standard errors, and the limit of the difference of the means.
        first, second = numpy.meshgrid(*(ratios * each / number for each in variances))
        df = (number - 1) * (first + second) ** 2 / (first**2 + second**2)
        limit = stats.t.ppf(1 - alpha / 2, df) * (first + second) ** 0.5

        error = (sum(variances) / number) ** 0.5
        for difference in (0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 100.0, 1000.0):
            higher = stats.norm.sf((limit - difference) / error)
            lower = stats.norm.cdf((-limit - difference) / error)
            expected = (higher + lower).mean()
            assert power(difference, variances, number, alpha) == pytest.approx(expected, abs=0.01)


def test_a_large_difference_of_few_seeds():
    """Differences at which scipy does not compute the lower tail."""
    alone = [70.0, 70.5, 69.5]
    assert seeds_needed([73.9, 74.4, 73.4], alone, 0.05) == 3
    assert seeds_needed([75.0, 75.5, 74.5], alone, 0.05) == 3
    assert seeds_needed([73.9, 74.4, 73.4], alone, 0.001) == 4
    assert seeds_needed([75.0, 75.5, 74.5], alone, 0.001) == 4


def test_the_differences_of_the_document():
    """docs/tables.md: what two, three and six seeds find, at a deviation of 0.25."""
    variances = (0.0625, 0.0625)
    for number, difference in ((2, 2.6), (3, 0.9), (6, 0.5)):
        assert power(difference, variances, number, 0.05) >= 0.8
        assert power(difference - 0.1, variances, number, 0.05) < 0.8


def test_outliers():
    assert outliers([77.1, 77.2, 60.03]) == [2]
    assert outliers([77.0, 77.1, 60.0]) == [2]
    assert outliers([60.0, 77.1, 77.2, 77.0, 77.15]) == [0]
    assert outliers([70.0, 70.2, 70.4, 70.1]) == []


def test_no_outliers_among_equal_or_few_values():
    assert outliers([70.0, 60.0]) == []
    assert outliers([70.0] * 5) == []
    assert outliers([70.0, 70.0, 70.3]) == []


def test_two_of_seven_can_be_outliers():
    assert outliers([77.0, 77.1, 77.2, 77.1, 60.0, 77.0, 61.0]) == [4, 6]


@pytest.mark.parametrize("number", [3, 5, 10])
def test_normal_noise_rarely_has_an_outlier(number):
    """In about 5 % of samples; the usual limit of 3.5 marks 29 % of samples of three."""
    generator = random.Random(1)
    samples = [[generator.gauss(70, 5) for _ in range(number)] for _ in range(2000)]
    share = sum(bool(outliers(sample)) for sample in samples) / len(samples)
    assert 0.02 < share < 0.08


def test_the_usual_limit_is_too_low_for_three_values():
    generator = random.Random(2)

    def score(values):
        centre = median(values)
        distances = [abs(value - centre) for value in values]
        return 0.6745 * max(distances) / median(distances)

    scores = [score([generator.gauss(0, 1) for _ in range(3)]) for _ in range(4000)]
    marked = sum(score > 3.5 for score in scores) / len(scores)
    assert marked == pytest.approx(0.29, abs=0.03)


def test_deviations():
    assert deviation_of([70.0]) is None
    assert deviation_of([70.0, 71.0, 72.0]) == 1


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match="a t-test needs scipy: pip install scipy"):
        welch(FIRST, SECOND, 0.05)
