from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pelton.server.workers.placement import EVERYWHERE, Weight, place

WEIGHTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.builds(Weight, st.integers(0, 1000), st.booleans())
)


def test_a_small_model_is_everywhere_and_a_big_one_in_one_worker() -> None:
    assert place({"small": Weight(100), "big": Weight(101)}, 3, 100) == {"small": EVERYWHERE, "big": 0}


def test_big_models_are_balanced_by_size() -> None:
    weights = {"a": Weight(900), "b": Weight(500), "c": Weight(450), "d": Weight(10)}
    assert place(weights, 2, 5) == {"a": 0, "b": 1, "c": 1, "d": 0}


def test_user_code_is_never_loaded_twice_however_light() -> None:
    assert place({"p": Weight(1, alone=True), "q": Weight(1, alone=True)}, 2, 100) == {"p": 0, "q": 1}


def test_one_worker_holds_everything() -> None:
    assert place({"big": Weight(10**12), "p": Weight(1, alone=True)}, 1, 0) == {"big": EVERYWHERE, "p": EVERYWHERE}


@given(WEIGHTS, st.integers(2, 9), st.integers(0, 1000))
def test_every_model_has_a_place_and_no_worker_is_overloaded(
    weights: dict[str, Weight], workers: int, below: int
) -> None:
    places = place(weights, workers, below)
    assert places.keys() == weights.keys()
    loads = [sum(weights[name].size for name, where in places.items() if where == worker) for worker in range(workers)]
    biggest = max((weights[name].size for name, where in places.items() if where != EVERYWHERE), default=0)
    assert max(loads) - min(loads) <= biggest


@given(WEIGHTS, WEIGHTS, st.integers(2, 9))
def test_models_that_have_a_place_keep_it(old: dict[str, Weight], new: dict[str, Weight], workers: int) -> None:
    before = place(old, workers, 100)
    after = place({**old, **new}, workers, 100, before)
    assert {name: after[name] for name in old} == before
