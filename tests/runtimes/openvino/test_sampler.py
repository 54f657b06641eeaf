"""Drawing tokens: against formulas, and against the frequencies that the formulas predict."""

from __future__ import annotations

import numpy as np
import pytest

from pelton.runtimes.openvino import sampler
from pelton.runtimes.openvino.sampler import Chooser, Counts, draw, largest, logprobs, support, uniform
from pelton.runtimes.openvino.scores import PromptScores
from pelton.runtimes.step_engine import LmRequest, Sampling

VOCAB = 1000


def chooser(sampling: Sampling, prompt: tuple[int, ...] = (1,)) -> Chooser:
    return Chooser(LmRequest("a", prompt, 5, sampling), VOCAB)


def logits(seed: int, rows: int = 1, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, spread, (rows, VOCAB)).astype(np.float32)


def softmax(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    x = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return np.asarray(x / x.sum())


def kept(probabilities: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The definition: top-k, then top-p of what is left, then min-p against the most likely."""
    order = np.argsort(-probabilities, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    mass = probabilities[order] / probabilities[order].sum()
    before = np.cumsum(mass) - mass
    order = order[before < sampling.top_p] if sampling.top_p < 1.0 else order
    order = order[probabilities[order] >= sampling.min_p * probabilities[order[0]]]
    return np.sort(order)


CUTS = [
    Sampling(temperature=1.0, top_k=7),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=5000),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.01),
    Sampling(temperature=1.0, top_p=0.99999),
    Sampling(temperature=1.0, top_k=40, top_p=0.8),
    Sampling(temperature=1.0, top_k=700, top_p=0.999),
    Sampling(temperature=1.0, top_p=0.95, min_p=0.1),
    Sampling(temperature=1.0, top_k=900, min_p=0.01),
]


@pytest.mark.parametrize("sampling", CUTS)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_what_is_cut_off_follows_the_definition(sampling: Sampling, spread: float) -> None:
    for seed in range(5):
        row = logits(seed, spread=spread)[0]
        weights = np.exp(row - row.max())
        assert support(weights, sampling).tolist() == kept(softmax(row), sampling).tolist()


def test_equally_likely_tokens_are_kept_from_the_first() -> None:
    assert support(np.ones(VOCAB, np.float32), Sampling(temperature=1.0, top_k=5)).tolist() == [0, 1, 2, 3, 4]
    assert len(support(np.ones(VOCAB, np.float32), Sampling(temperature=1.0, top_p=0.5))) == VOCAB // 2


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=2.0),
        Sampling(temperature=1.0, min_p=0.05),
        Sampling(temperature=1.3, top_k=12),
        Sampling(temperature=0.9, top_p=0.8),
        Sampling(temperature=1.0, top_p=0.9, bias=((3, 5.0), (4, -3.0))),
    ],
)
def test_tokens_come_as_often_as_the_distribution_says(sampling: Sampling) -> None:
    row = logits(1, spread=1.5)
    count = 4000
    rows = np.repeat(row, 50, axis=0)
    found = np.zeros(VOCAB)
    for at in range(count // 50):
        choosers = [chooser(Sampling(**{**fields(sampling), "seed": at * 50 + i})) for i in range(50)]
        for token in draw(rows, choosers, [7] * 50):
            found[token] += 1
    biased = row[0].copy()
    for token, value in sampling.bias:
        biased[token] += value
    expected = softmax(biased, sampling.temperature)
    allowed = kept(expected, sampling)
    assert set(np.flatnonzero(found)) <= set(allowed.tolist())
    expected = expected[allowed] / expected[allowed].sum() * count
    likely = expected >= 5.0
    groups = np.append(expected[likely], expected[~likely].sum())
    seen = np.append(found[allowed][likely], found[allowed][~likely].sum())
    groups, seen = groups[groups > 0], seen[groups > 0]
    statistic = float(((seen - groups) ** 2 / groups).sum())
    freedom = len(groups) - 1
    assert statistic < freedom + 5.0 * np.sqrt(2.0 * freedom) + 5.0


def fields(sampling: Sampling) -> dict[str, object]:
    return {name: getattr(sampling, name) for name in sampling.__slots__}


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    kinds = [
        Sampling(),
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.8, top_p=0.9, seed=2),
        Sampling(temperature=1.2, min_p=0.02, seed=3),
        Sampling(presence=1.0),
        Sampling(temperature=1.0, seed=1),
    ]
    rows = logits(4, len(kinds))
    together = draw(rows, [chooser(kind) for kind in kinds], range(len(kinds)))
    for i, kind in enumerate(kinds):
        assert draw(rows[i : i + 1], [chooser(kind)], [i]) == [together[i]]
    assert together[0] == rows[0].argmax()


def test_uniform_numbers_are_spread_evenly_and_follow_from_seed_and_position() -> None:
    values = np.array([uniform(seed, position) for seed in range(100) for position in range(100)])
    assert ((values > 0) & (values < 1)).all()
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert abs(counts - 500).max() < 120
    assert len(set(values.tolist())) == len(values)
    assert uniform(5, 9) == uniform(5, 9)
    assert uniform(-1, 3) == uniform(-1, 3)
    assert 0.0 < uniform(2**70, 1) < 1.0


def test_extreme_draws_stay_within_the_support(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.full((1, VOCAB), -50.0, np.float32)
    row[0, [10, 500]] = 5.0
    for value, expected in ((1e-12, 10), (1.0 - 2**-53, 500)):
        monkeypatch.setattr(sampler, "uniform", lambda seed, position, value=value: value)
        for kind in (
            Sampling(temperature=0.1),
            Sampling(temperature=0.1, top_p=0.99),
            Sampling(temperature=0.1, top_k=2),
        ):
            assert draw(row, [chooser(kind)], [0]) == [expected]


def test_penalties_follow_their_formulas() -> None:
    row = logits(2)[0]
    sampling = Sampling(repetition=1.5, frequency=0.4, presence=0.9)
    counts = Counts([5, 6, 5], [7, 7, 6])
    counts.add([7])
    expected = row.astype(np.float64)
    for token, times in ((5, 0), (6, 1), (7, 3)):
        value = expected[token]
        value = value / 1.5 if value > 0 else value * 1.5
        expected[token] = value - 0.4 * times - 0.9 * (times > 0)
    changed = row.copy()
    counts.penalize(changed, sampling)
    assert changed == pytest.approx(expected, abs=1e-5)


def test_counts_grow_with_the_output() -> None:
    counts = Counts([1])
    counts.add(range(500))
    row = np.zeros(VOCAB, np.float32)
    counts.penalize(row, Sampling(presence=1.0))
    assert row[:500].tolist() == [-1.0] * 500
    assert not row[500:].any()


def test_penalties_and_bias_leave_the_models_own_row_alone() -> None:
    rows = logits(3)
    before = rows.copy()
    draw(rows, [chooser(Sampling(bias=((4, 100.0),), presence=2.0))], [1])
    assert (rows == before).all()


def test_a_grammar_is_a_choice_among_what_it_allows() -> None:
    rows = logits(5, 3)
    allowed = np.array([900, 3, 77])
    choosers = [chooser(Sampling()), chooser(Sampling(temperature=5.0, seed=2)), chooser(Sampling(bias=((3, 99.0),)))]
    for one in choosers:
        one.grammar, one.plain, one.simple, one.allowed = object(), False, False, allowed  # type: ignore[assignment]
    tokens = draw(rows, choosers, [0, 1, 2])
    assert tokens[0] == max(allowed.tolist(), key=lambda token: rows[0, token])
    assert tokens[1] in allowed
    assert tokens[2] == 3


@pytest.mark.parametrize("size", [3, 64, 1000, 4096, 49152, 50001])
def test_the_largest_values_are_found_in_order(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    values[size // 2 :: 7] = values[0]  # some are equal
    for count in (1, 2, 5, 20):
        expected = np.argsort(-values, kind="stable")[:count]
        assert largest(values, count).tolist() == expected.tolist()


def test_log_probabilities_add_up_and_name_the_most_likely() -> None:
    rows = logits(6, 3)
    found = logprobs(rows, [5, 6, 7], [0, 1, 20])
    for row, entry, token, most in zip(rows, found, (5, 6, 7), (0, 1, 20), strict=True):
        expected = np.log(softmax(row))
        assert entry.chosen == pytest.approx(expected[token], abs=1e-5)
        order = np.argsort(-expected)[:most]
        assert [t for t, _ in entry.top] == order.tolist()
        assert [v for _, v in entry.top] == pytest.approx(expected[order], abs=1e-5)


def test_a_prompt_is_scored_once_however_often_it_is_computed() -> None:
    prompt = tuple(range(10, 20))
    rows = logits(7, 10)
    scores = PromptScores(prompt, 1)
    assert scores.rows(0, 4) == range(0, 4)
    scores.take(rows[0:4])
    assert list(scores.rows(0, 4)) == [], "preempted, and computed again"
    assert scores.rows(0, 6) == range(4, 6)
    scores.take(rows[4:6])
    assert scores.rows(6, 4) == range(0, 3), "the last position predicts no token of the prompt"
    with pytest.raises(AssertionError):
        scores.result()
    scores.take(rows[6:9])
    result = scores.result()
    assert result[0] is None
    assert [entry.chosen for entry in result[1:] if entry] == pytest.approx(
        [float(np.log(softmax(rows[i]))[prompt[i + 1]]) for i in range(9)], abs=1e-5
    )
