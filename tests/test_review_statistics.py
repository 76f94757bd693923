"""Reader statistics against published tables, closed forms and counts made by hand."""

import re
from math import comb

import numpy as np
import pytest
from scipy import stats
from test_docs import ROOT

from scripts.review.statistics import (
    Bootstrap,
    Readings,
    against_guessing,
    cohen_kappa,
    counts_of,
    exact_share,
    fleiss_kappa,
    percentile,
    permutation_p,
    roc_curve,
    verdict_counts,
)

NAN = np.nan
# 14 raters, 10 subjects, 5 categories, kappa 0.210: the worked example of Fleiss' kappa in textbooks
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def beyond(kind, count, total, share):
    """P(at least `count`) or P(at most `count`) of a binomial, summed up by hand."""
    chosen = range(count, total + 1) if kind == "least" else range(count + 1)
    return sum(comb(total, k) * share**k * (1 - share) ** (total - k) for k in chosen)


@pytest.mark.parametrize(("count", "total"), [(5, 10), (1, 20), (33, 40)])
def test_exact_intervals_leave_two_and_a_half_percent_on_either_side(count, total):
    found = exact_share(count, total)
    assert found.value == count / total
    assert beyond("least", count, total, found.low) == pytest.approx(0.025, rel=1e-4)
    assert beyond("most", count, total, found.high) == pytest.approx(0.025, rel=1e-4)


def test_exact_intervals_at_the_ends():
    assert exact_share(0, 10).low == 0 and exact_share(0, 10).high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert exact_share(10, 10).high == 1 and exact_share(10, 10).low == pytest.approx(0.025 ** (1 / 10))
    assert exact_share(0, 0).value is None and against_guessing(0, 0) is None
    assert against_guessing(5, 5) == pytest.approx(2 / 2**5)


def test_fleiss_kappa_of_the_textbook():
    assert fleiss_kappa(np.array(FLEISS))[0] == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3, 0], [0, 3]]))[0] == 1
    assert fleiss_kappa(np.array([[1, 1], [1, 1]]))[0] == -1  # two readers who never agree
    assert np.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]]))[0])  # no chance to disagree
    assert np.isnan(fleiss_kappa(np.array([[1, 0], [0, 1]]))[0])  # one reader


def test_cohen_kappa_of_a_table():
    """20 times yes and yes, 5 yes and no, 10 no and yes, 15 no and no: (0.7 - 0.5) / (1 - 0.5)."""
    one = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    other = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(one, other)[0] == pytest.approx(0.4)
    assert np.isnan(cohen_kappa(np.ones(4), np.ones(4))[0])


def test_weights_count_cases_as_often_as_they_are_drawn():
    counts, weights = np.array(FLEISS), np.array([[2, 0, 1, 1, 1, 0, 1, 2, 1, 1]])
    repeated = np.repeat(counts, weights[0], 0)
    assert fleiss_kappa(counts, weights)[0] == pytest.approx(fleiss_kappa(repeated)[0])
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 2, (2, 10))
    repeated = (np.repeat(one, weights[0]), np.repeat(other, weights[0]))
    assert cohen_kappa(one, other, weights)[0] == pytest.approx(cohen_kappa(*repeated)[0])


@pytest.fixture
def study():
    """3 readers, 12 synthetic and 9 real cases; some answers are missing."""
    rng = np.random.default_rng(1)
    synthetic = np.arange(21) < 12
    rating = rng.choice([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5], (3, 21)) + 0.0
    rating = np.where(synthetic & (rng.random((3, 21)) < 0.3), np.abs(rating), rating)
    rating[0, 3] = rating[2, 15] = NAN
    return Readings(synthetic, np.where(np.isnan(rating), NAN, rating > 0), rating)


def test_areas_are_those_of_mann_whitney_and_of_the_curve(study):
    found = Bootstrap(study.synthetic, 3, 50, 0).areas(study.rating)
    for index, rating in enumerate(study.rating):
        high, low = rating[study.synthetic], rating[~study.synthetic]
        high, low = high[np.isfinite(high)], low[np.isfinite(low)]
        expected = stats.mannwhitneyu(high, low).statistic / (len(high) * len(low))
        assert found[0, index] == pytest.approx(expected)
        x, y = roc_curve(rating, study.synthetic)
        assert np.trapezoid(y, x) == pytest.approx(expected)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_a_draw_is_the_area_of_the_cases_that_it_repeats(study):
    bootstrap = Bootstrap(study.synthetic, 3, 20, 0)
    found = bootstrap.areas(study.rating)
    for draw in (1, 7, 20):
        weights = bootstrap.cases[draw].astype(int)
        assert weights[study.synthetic].sum() == 12 and weights[~study.synthetic].sum() == 9
        kinds, rating = np.repeat(study.synthetic, weights), np.repeat(study.rating, weights, 1)
        for reader in range(3):
            one = rating[reader][np.isfinite(rating[reader])]
            kind = kinds[np.isfinite(rating[reader])]
            statistic = stats.mannwhitneyu(one[kind], one[~kind]).statistic
            assert found[draw, reader] == pytest.approx(statistic / (kind.sum() * (~kind).sum()))


def test_shares_of_all_readings(study):
    counts = counts_of(study.correct, study.synthetic)
    right = sum(
        (rating > 0) == synthetic
        for row in study.rating
        for rating, synthetic in zip(row, study.synthetic)
        if np.isfinite(rating)
    )
    assert counts["accuracy"] == (right, 61) and counts["sensitivity"][1] == 35 and counts["specificity"][1] == 26
    assert counts["sensitivity"][0] + counts["specificity"][0] == right
    shares = Bootstrap(study.synthetic, 3, 10, 0).shares(study.correct)
    for name, (count, total) in counts.items():
        assert shares[name][0] == pytest.approx(count / total)


def test_the_bootstrap_covers_readers_who_differ():
    """One reader sees all, the others nothing: who is asked matters more than which cases are shown."""
    synthetic = np.arange(40) < 20
    called = np.stack([synthetic, np.arange(40) % 2 == 0, np.arange(40) % 2 == 1]).astype(float)
    readings = Readings(synthetic, called, np.where(called == 1, 3.0, -3.0))
    of_all = percentile(Bootstrap(synthetic, 3, 400, 0).shares(readings.correct)["accuracy"])
    exact = exact_share(*counts_of(readings.correct, synthetic)["accuracy"])
    assert of_all.high - of_all.low > 1.5 * (exact.high - exact.low)


def test_difference_of_scores_and_its_permutation():
    """Scores 1, 1, 2 of synthetic and 3, 3, 4 of real cases: only the groups as they are, and swapped, are as far apart."""
    synthetic = np.array([True, True, True, False, False, False])
    scores = np.array([[1, 1, 2, 3, 3, 4.0], [1, 1, NAN, 3, 3, 4.0]])
    bootstrap = Bootstrap(synthetic, 2, 200, 0)
    found = percentile(bootstrap.difference(scores))
    assert found.value == pytest.approx(4 / 3 - 10 / 3) and found.low <= found.value <= found.high < 0
    assert permutation_p(scores, synthetic, 0) == pytest.approx(2 / comb(6, 3))
    assert permutation_p(scores[:, [0, 3, 4]], synthetic[[0, 3, 4]], 0) is None


def test_permutations_of_equal_groups_are_not_significant_too_often():
    rng = np.random.default_rng(0)
    synthetic = np.arange(8) < 4
    p_values = [permutation_p(rng.normal(size=(2, 8)), synthetic, 0) for _ in range(200)]
    assert 0.01 < np.mean(np.array(p_values) < 0.1) < 0.2


def test_verdicts_that_not_all_gave_are_left_out_of_fleiss():
    called = np.array([[1, 0, 1, NAN], [1, 0, 0, 1]])
    assert verdict_counts(called).tolist() == [[0, 2], [2, 0], [1, 1]]
    bootstrap = Bootstrap(np.array([True, True, False, False]), 2, 10, 0)
    assert bootstrap.fleiss(called)[0] == pytest.approx(fleiss_kappa(np.array([[0, 2], [2, 0], [1, 1]]))[0])
    assert bootstrap.cohen(called[0], called[1])[0] == pytest.approx(cohen_kappa(called[0, :3], called[1, :3])[0])


def test_numbers_that_are_not_defined_say_so():
    assert percentile(np.array([NAN, 1.0, 2.0])).value is None
    assert percentile(np.array([1.0, NAN, NAN])).low is None
    one_kind = Bootstrap(np.array([True, True, False]), 1, 5, 0).areas(np.array([[1.0, 2.0, NAN]]))
    assert np.isnan(one_kind).all()


def test_the_table_of_the_docs_is_right():
    """How wide the interval of a share is, by the number of cases."""
    page = (ROOT / "bundle" / "docs" / "review.md").read_text()
    head, *rows = re.findall(r"^\|(.+)\|$", page.split("<!-- widths -->")[1], re.M)
    shares = [int(text) / 100 for text in re.findall(r"(\d+) %", head)]
    rows = [[cell.strip() for cell in row.split("|")] for row in rows[1:]]
    assert len(rows) > 4 and len(shares) > 2
    for cases, *cells in rows:
        for share, cell in zip(shares, cells):
            found = exact_share(round(share * int(cases)), int(cases))
            assert cell == f"{100 * found.low:.0f} to {100 * found.high:.0f} %", (cases, share)
