"""What a decoder writes, cut into segments; tokens and words. No model runs here.

Mutants that these tests were seen to kill by hand: an end that was cut off is kept; times beyond the sound; the last pair
counted as done where a single time ends the text; a word begun inside of a character.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pelton.errors import PackageInvalid
from pelton.runtimes.whisper.decoding import Attempt
from pelton.runtimes.whisper.segments import Piece, compression_ratio, cut
from pelton.runtimes.whisper.vocabulary import Vocabulary
from pelton.runtimes.whisper.words import Aligned, words_of

T = 1000  # <|0.00|>


def t(seconds: float) -> int:
    return T + round(seconds / 0.02)


def test_pairs_of_times_part_segments_and_what_has_no_end_is_heard_again():
    tokens = [t(0), 1, 2, t(4), t(4), 3, t(9), t(9.5), 4, 5]
    pieces, done = cut(tokens, T, 3000)
    assert pieces == [Piece(0.0, 4.0, [t(0), 1, 2, t(4)]), Piece(4.0, 9.0, [t(4), 3, t(9)])]
    assert done == 900


def test_a_single_time_at_the_end_says_that_nothing_is_spoken_after_it():
    pieces, done = cut([t(0), 1, t(4), t(4.2), 2, t(8)], T, 3000)
    assert [(piece.start, piece.end) for piece in pieces] == [(0.0, 4.0), (4.2, 8.0)]
    assert done == 3000


def test_text_without_pairs_is_one_segment():
    assert cut([t(0), 1, 2, t(5.2)], T, 3000) == ([Piece(0.0, 5.2, [t(0), 1, 2, t(5.2)])], 3000)
    assert cut([t(1), 1, 2], T, 250) == ([Piece(1.0, 2.5, [t(1), 1, 2])], 250)
    assert cut([1, 2], T, 250) == ([Piece(0.0, 2.5, [1, 2])], 250)
    assert cut([], T, 250)[1] == 250


def test_times_beyond_the_sound_are_its_end():
    pieces, done = cut([t(0), 1, t(2), t(2), 2, t(28), t(28)], T, 300)
    assert [(piece.start, piece.end) for piece in pieces] == [(0.0, 2.0), (2.0, 3.0)]
    assert done == 300


def test_a_window_always_gets_on():
    """A decoder that writes <|0.00|><|0.00|> would be asked the same again for ever."""
    assert cut([t(0), t(0), 1, 2], T, 3000)[1] == 3000


def test_text_that_repeats_itself_packs_well():
    assert compression_ratio("so it goes " * 40) > 2.4
    assert compression_ratio("It was the best of times, it was the worst of times.") < 2.4
    assert compression_ratio("") == 0.0


@pytest.mark.parametrize(("likely", "no_speech", "ratio", "silent", "fails"), [
    (-0.3, 0.1, 1.5, False, False),
    (-1.2, 0.1, 1.5, False, True),  # unlikely
    (-0.3, 0.1, 2.5, False, True),  # repeats itself
    (-1.2, 0.7, 1.5, True, False),  # no speech: another temperature finds none either
    (-0.9, 0.7, 1.5, False, False),
    (-0.9, 0.95, 0.4, True, False),  # a polite "you"
])  # fmt: skip
def test_decodings_are_judged_as_the_paper_does(likely, no_speech, ratio, silent, fails):
    attempt = Attempt([], likely, no_speech, ratio, 0.0)
    assert (attempt.silent, attempt.fails) == (silent, fails)


STEERING = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|yue|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>",
]  # fmt: skip


def vocabulary(*tokens: str) -> Vocabulary:
    return Vocabulary([*tokens, *STEERING])


def test_tokens_are_bytes_and_steering_tokens_have_no_text():
    words = vocabulary("Ġhello", ",", "Ã", "¤", "Ġ", "h")
    assert words.text([0, 1, 4, 2, 3, words.first_time, words.end]) == " hello, ä"
    assert words.text([2]) == "\ufffd"  # half of a character
    assert words.first_time == len(STEERING) - 1 + 6
    assert set(words.languages) == {"en", "de", "yue"}
    assert not words.multilingual


def test_prompts_become_the_longest_known_tokens():
    words = vocabulary("Ġhello", "Ġhe", "Ġ", "l", "o", "Ġwor", "ld", "Ã", "¤")
    assert words.encode("hello  world\n") == [0, 5, 6]
    assert words.encode("helo ä") == [1, 3, 4, 2, 7, 8]
    assert words.encode("hello q") == [0, 2]  # q is unknown, and left out
    assert words.encode("") == []
    assert all(token < words.end for token in words.encode("<|endoftext|>"))  # no steering from outside


def test_words_are_whole_characters_and_marks_stay_with_the_word_before():
    words = vocabulary("Ġhe", "llo", ",", "Ġ", "Ã", "¤", "Ġyou")
    assert words.words([0, 1, 2, 6, 3, 4, 5], "en") == [(" hello,", 3), (" you", 1), (" ä", 3)]
    chinese = Vocabulary(["ä½", "ł", "å¥½", "ãĢĤ", *STEERING])
    assert chinese.text([0, 1, 2, 3]) == "你好。"
    assert chinese.words([0, 1, 2, 3], "zh") == [("你", 2), ("好。", 2)]


def test_words_begin_where_the_decoder_looked():
    words = vocabulary("Ġone", "Ġtwo", "s", "Ġthree")
    path = [(0, 0), (0, 10), (1, 25), (1, 30), (2, 40), (3, 50), (3, 75)]
    found = words_of(Aligned([0, 1, 2, 3], path, [0.5, 0.9, 0.7, 1.0]), words, "en")
    assert [(at, word.word, word.start, word.end) for at, word in found] == [
        (0, " one", 0.0, 0.5), (1, " twos", 0.5, 1.0), (3, " three", 1.0, 1.5),
    ]  # fmt: skip
    assert [word.probability for _, word in found] == pytest.approx([0.5, 0.8, 1.0])
    assert words_of(Aligned([], [], []), words, "en") == []


def test_vocabularies_are_read_in_both_forms(tmp_path: Path):
    with pytest.raises(PackageInvalid, match=r"vocabulary\.json or vocabulary\.txt"):
        Vocabulary.read(tmp_path)
    (tmp_path / "vocabulary.txt").write_text("\n".join(["Ġa", *STEERING]) + "\n", encoding="utf-8")
    assert Vocabulary.read(tmp_path).text([0]) == " a"
    (tmp_path / "vocabulary.json").write_text(json.dumps(["Ġb", *STEERING]), encoding="utf-8")
    assert Vocabulary.read(tmp_path).text([0]) == " b"
    (tmp_path / "vocabulary.json").write_text(json.dumps(["Ġb"]), encoding="utf-8")
    with pytest.raises(PackageInvalid, match="no Whisper model"):
        Vocabulary.read(tmp_path)
