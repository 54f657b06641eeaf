"""Thoughts of a model, told apart from its answer."""

from __future__ import annotations

import pytest

from pelton.language.reasoning import KNOWN, Thought, ThoughtParser, marks_of, opened

THINK = KNOWN[0]
CASES = [
    ("<think>\nI see.\n\nYes.\n</think>\n\nHello </think> x", False, "I see.\n\nYes.", "Hello </think> x"),
    ("<think>\n\n</think>\n\nhi", False, "", "hi"),
    ("<think>x</think>", True, "x", ""),
    ("a</think>b", True, "a", "b"),
    ("cut in the mid", True, "cut in the mid", ""),
    ("<think>un</thi", False, "un</thi", ""),
    ("  hi <think>no</think>", False, "", "  hi <think>no</think>"),
    ("<thi", False, "", "<thi"),
    ("", True, "", ""),
]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(("text", "inside", "thought", "said"), CASES)
def test_thoughts_are_read_however_the_text_is_cut(text: str, inside: bool, thought: str, said: str, size: int):
    parser = ThoughtParser(THINK, inside)
    parts = [part for at in range(0, len(text), size) for part in parser.push(text[at : at + size])] + parser.finish()
    assert "".join(part.text for part in parts if isinstance(part, Thought)) == thought
    assert "".join(part for part in parts if isinstance(part, str)) == said
    assert all(parts)


def test_thoughts_stream_as_they_come():
    parser = ThoughtParser(THINK)
    assert parser.push("<think>\nOne ") == [Thought("One")]
    assert parser.push("two") == [Thought(" two")]
    assert parser.push("\n</think>\n") == []
    assert parser.push("Three") == ["Three"]


def test_the_marks_come_from_the_template_or_the_vocabulary(tokenizer):
    assert marks_of("{% if '</think>' in content %}", tokenizer) == THINK
    assert marks_of("[THINK]x[/THINK]", tokenizer) == KNOWN[1]
    assert marks_of("{{ messages }}", tokenizer) is None


def test_a_prompt_that_ends_with_the_mark_has_begun_the_thoughts(tokenizer):
    def ends_in(text: str) -> bool:
        return opened(THINK, tokenizer.encode(text), tokenizer)

    assert ends_in("hello<|im_end|>\nassistant\n<think>\n")
    assert not ends_in("assistant\n<think>\n\n</think>\n\n")
    assert not ends_in("what does <think> mean?\nassistant\n")
