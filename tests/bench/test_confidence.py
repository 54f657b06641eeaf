import math

import pytest

from pelton.bench.confidence import binomial_tail, holds, least_requests, max_over

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
# MLPerf LoadGen's early stopping at 99 % confidence: requests needed, by how many are over the limit.
TABLE = {
    0: (7, 44, 90, 459, 4_603),
    1: (11, 64, 130, 662, 6_636),
    2: (14, 81, 165, 838, 8_403),
    5: (22, 127, 259, 1_307, 13_105),
    10: (35, 197, 398, 2_010, 20_140),
}


@pytest.mark.parametrize("over", TABLE)
def test_the_least_number_of_requests_is_that_of_the_published_table(over: int) -> None:
    assert tuple(least_requests(over, percentile) for percentile in PERCENTILES) == TABLE[over]


@pytest.mark.parametrize("over", TABLE)
def test_one_request_less_than_the_least_proves_nothing(over: int) -> None:
    assert holds(TABLE[over][3], over)
    assert not holds(TABLE[over][3] - 1, over)
    assert max_over(TABLE[over][3]) == over


def test_no_requests_and_too_few_requests_prove_nothing() -> None:
    assert max_over(0) == -1
    assert max_over(458) == -1
    assert not holds(0, 0)


@pytest.mark.parametrize(("n", "t", "q"), [(10, 3, 0.5), (40, 0, 0.01), (25, 7, 0.2), (60, 59, 0.9)])
def test_the_tail_is_the_sum_of_exact_binomial_terms(n: int, t: int, q: float) -> None:
    exact = sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(t + 1))
    assert binomial_tail(n, t, q) == pytest.approx(exact, rel=1e-9)


def test_the_tail_does_not_underflow_where_its_first_terms_do() -> None:
    # 0.99 ** 1_000_000 is 0 in a float; the median of Binomial(n, q) is n * q.
    assert binomial_tail(1_000_000, 10_000, 0.01) == pytest.approx(0.5, abs=0.01)
    assert 9_700 < max_over(1_000_000) < 9_800


def test_the_tail_is_0_below_and_1_at_the_end() -> None:
    assert binomial_tail(5, -1, 0.3) == 0.0
    assert binomial_tail(5, 5, 0.3) == 1.0
