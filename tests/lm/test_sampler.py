"""Sampling draws what its parameters say, and the same on every device and in every batch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pelton.runtimes.lm.sampler import Row, Sampler, uniform
from pelton.runtimes.step_engine import Sampling

pytestmark = pytest.mark.lm

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]))


def draw(sampling: Sampling, count: int = 2000, allowed: list[int] | None = None) -> Counter[int]:
    sampler = Sampler(1, 5, torch.device("cpu"))
    rows = [Row(sampling, position, 0, allowed) for position in range(count)]
    return Counter(sampler.draw(LOGITS.expand(count, 5), rows).tokens.tolist())


def test_frequencies_are_the_probabilities() -> None:
    found = draw(Sampling(temperature=1.0, seed=7), 8000)
    for token, wanted in enumerate((0.5, 0.25, 0.125, 0.0625, 0.0625)):
        assert found[token] / 8000 == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.6), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.5), {0}),
        (Sampling(temperature=1.0, min_p=0.2), {0, 1, 2}),
        (Sampling(temperature=1.0, top_k=4, top_p=0.9, min_p=0.4), {0, 1}),
        (Sampling(temperature=0.0), {0}),
        (Sampling(temperature=1e-3), {0}),
    ],
)
def test_filters_keep_only_what_they_say(sampling: Sampling, kept: set[int]) -> None:
    assert set(draw(sampling)) == kept


def test_temperature_flattens() -> None:
    assert draw(Sampling(temperature=5.0))[0] < draw(Sampling(temperature=1.0))[0] < draw(Sampling(temperature=0.5))[0]


def test_a_grammar_leaves_only_what_it_allows() -> None:
    assert set(draw(Sampling(temperature=1.0), allowed=[3, 4])) == {3, 4}
    assert set(draw(Sampling(), allowed=[2, 4])) == {2}


def test_a_bias_is_added_to_the_logit_of_its_token() -> None:
    assert set(draw(Sampling(bias=((3, 100.0),)))) == {3}
    assert set(draw(Sampling(temperature=1.0, bias=((0, -100.0), (1, -100.0))))) == {2, 3, 4}
    doubled = draw(Sampling(temperature=1.0, seed=3, bias=((4, 0.6931472),)), 8000)  # ln 2: twice as likely
    assert doubled[4] / 8000 == pytest.approx(0.125 / 1.0625, abs=0.02)


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    sampler = Sampler(1, 5, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 5, generator=generator)
    kinds = [Sampling(temperature=1.0, seed=i, top_k=i % 3, top_p=1.0 - 0.1 * (i % 2)) for i in range(40)]
    rows = [Row(kind, 3 * i, 0) for i, kind in enumerate(kinds)]
    together = sampler.draw(logits, rows).tokens
    for i, row in enumerate(rows):
        assert sampler.draw(logits[i : i + 1], [row]).tokens[0] == together[i]


def test_random_numbers_are_fixed_for_all_time() -> None:
    assert [round(uniform(s, p), 6) for s, p in ((0, 0), (0, 1), (1, 0), (12345, 678))] == [
        0.42857,
        0.424449,
        0.362397,
        0.924095,
    ]
    values = [uniform(3, p) for p in range(4000)]
    assert min(values) > 0.0
    assert max(values) < 1.0
    assert sum(values) / 4000 == pytest.approx(0.5, abs=0.02)


def test_wrong_parameters_are_refused() -> None:
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 2.0}, {"repetition": 0.0}, {"logprobs": 21}):
        with pytest.raises(ValueError):
            Sampling(**wrong)  # type: ignore[arg-type]
