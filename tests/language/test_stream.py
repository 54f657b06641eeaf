from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.errors import InvalidInput
from pelton.language import TextStream


def told(stream, ids, size=1):
    """What comes out, piece by piece."""
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [*pieces, stream.finish()]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), size=st.integers(1, 7))
def test_pieces_add_up_to_the_text_and_no_character_is_cut(text, size, tokenizer):
    pieces = told(TextStream(tokenizer), tokenizer.encode(text), size)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(alphabet="ab\n🙂", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n🙂", min_size=1, max_size=4), max_size=3),
    size=st.integers(1, 5),
    include=st.booleans(),
)
def test_stop_strings_are_found_across_tokens_as_in_the_whole_text(text, stops, size, include, tokenizer):
    stream = TextStream(tokenizer, stops, include_stop=include)
    out = "".join(told(stream, tokenizer.encode(text), size))
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert (out, stream.stopped) == (text, None)
        return
    end, _, stop = min(ends)
    assert stream.stopped == stop
    assert out == text[: end if include else end - len(stop)]


def test_the_beginning_of_a_stop_string_is_held_back_and_given_when_it_was_none(tokenizer):
    stream = TextStream(tokenizer, ["END"])
    assert stream.push(tokenizer.encode("x EN")) == "x "
    assert stream.push(tokenizer.encode("EN")) == "EN"
    assert stream.finish() == "EN"
    assert stream.stopped is None


def test_after_a_stop_string_nothing_comes(tokenizer):
    stream = TextStream(tokenizer, ["\n"])
    assert stream.push(tokenizer.encode("one\ntwo")) == "one"
    assert stream.push(tokenizer.encode("three")) == ""
    assert stream.finish() == ""


def test_tokens_are_released_with_their_text(tokenizer):
    stream = TextStream(tokenizer, ["STOP"])
    ids = [*tokenizer.encode("ab"), *tokenizer.encode("ST")]
    stream.push(ids)
    assert stream.released == len(tokenizer.encode("ab"))
    stream.finish()
    assert stream.released == len(ids)


def test_a_piece_of_a_character_is_not_released_before_the_character(spaced):
    stream = TextStream(spaced)
    ids = [spaced.id_of(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert stream.push(ids[:3]) == ""
    assert stream.released == 0
    assert stream.push(ids[3:]) == "🙂"
    assert stream.released == 4


def test_a_cut_character_at_the_end_becomes_one_replacement(spaced):
    stream = TextStream(spaced)
    assert stream.push([spaced.id_of("<0xF0>"), spaced.id_of("<0x9F>")]) == ""
    assert stream.finish() == "\ufffd"


def test_control_tokens_are_silent_unless_they_are_wanted(tokenizer):
    ids = [1, *tokenizer.encode("hi"), 2]
    assert "".join(told(TextStream(tokenizer), ids)) == "hi"
    assert "".join(told(TextStream(tokenizer, show=[2]), ids)) == "hi<|im_end|>"


def test_the_space_before_a_sentencepiece_text_stays_unless_a_text_starts_there(spaced):
    ids = spaced.encode("hello the")
    assert "".join(told(TextStream(spaced), ids)) == " hello the"
    assert "".join(told(TextStream(spaced, start=True), ids)) == "hello the"


@pytest.mark.parametrize(("stops", "why"), [([""], "0 characters"), (["x" * 5000], "5000"), (["a"] * 17, "17 strings")])
def test_unusable_stop_strings_are_refused(stops, why, tokenizer):
    with pytest.raises(InvalidInput, match=why):
        TextStream(tokenizer, stops)


def test_a_token_costs_the_same_after_a_long_text_and_with_a_cruel_stop_string(tokenizer):
    stream = TextStream(tokenizer, ["a" * 2000 + "b"])
    ids = tokenizer.encode("a" * 500)

    def seconds():
        begin = time.process_time()
        for _ in range(10):
            stream.push(ids)
        return time.process_time() - begin

    first = min(seconds() for _ in range(3))
    for _ in range(40):
        stream.push(ids)
    assert min(seconds() for _ in range(3)) < 10 * first + 0.01
