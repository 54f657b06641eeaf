"""Token ids of a running generation -> text that is certain: whole characters, and no beginning of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Final

from pelton.errors import InvalidInput
from pelton.language.tokenizer import Tokenizer

MOST_STOPS: Final = 16
LONGEST_STOP: Final = 4096  # characters


class TextStream:
    """The text of one generation. Each token costs the same, however long the text has become.

        stream = TextStream(tokenizer, ["\\n\\n"])
        text = stream.push(ids)         # what can be sent now; may be ""
        if stream.stopped is not None:  # that stop string was found: the rest of the ids does not count
            ...
        text += stream.finish()         # what was held back

    `released` counts the tokens whose text is out: with it go their logprobs. `show` are control tokens that are text
    here, as those of tool calls; `start` takes away the space that SentencePiece puts before a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        include_stop: bool = False,
        show: Iterable[int] = (),
        start: bool = False,
    ) -> None:
        self.stopped: str | None = None
        self.released = 0
        self._tokenizer = tokenizer
        self._silent = tokenizer.special_ids.difference(show)
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_Matcher(stop) for stop in check_stops(stops)]
        self._starts = {stop[0] for stop in stops}
        self._held = ""  # text that may begin a stop string: empty where no matcher has begun
        self._ends: list[int] = []  # of tokens that are not released: their last character's place in all text
        self._length = 0  # characters of all text so far
        self._strip = start and tokenizer.leading_space

    def push(self, ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        out = ""
        for token in ids:
            if self.stopped is not None:
                break
            raw = b"" if token in self._silent else self._tokenizer.token_bytes(token)
            text = self._decoder.decode(raw)
            if self._strip and text:
                text, self._strip = text.removeprefix(" "), False
            out += self._take(text, bool(self._decoder.getstate()[0]))
        return out

    def finish(self) -> str:
        """What was held back; the end of a cut character is U+FFFD. After a stop string there is nothing more."""
        if self.stopped is not None:
            return ""
        out = self._feed(self._decoder.decode(b"", final=True))
        out += self._held
        self._held = ""
        self.released += len(self._ends)
        self._ends.clear()
        return out

    def _take(self, text: str, partial: bool) -> str:
        self._ends.append(self._length + len(text) + partial)
        out = self._feed(text)
        sure = self._length - len(self._held)
        done = 0
        while done < len(self._ends) and self._ends[done] <= sure:
            done += 1
        if self.stopped is not None:
            done = len(self._ends)  # the token that completes the stop string is the last one
        self.released += done
        del self._ends[:done]
        return out

    def _feed(self, text: str) -> str:
        """Appends text; what cannot belong to a stop string any more comes out."""
        if not self._held and self._starts.isdisjoint(text):  # nothing in it begins a stop string
            self._length += len(text)
            return text
        pending = self._held + text
        begun = len(self._held)
        for at, character in enumerate(text, begun + 1):
            self._length += 1
            found = [matcher.stop for matcher in self._matchers if matcher.advance(character)]
            if found:
                self.stopped = max(found, key=len)  # the one that begins first
                self._held = ""
                return pending[:at] if self._include_stop else pending[: at - len(self.stopped)]
        keep = max(matcher.matched for matcher in self._matchers)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return pending[:cut]


class _Matcher:
    """Knuth, Morris and Pratt: how much of a stop string the text ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._back = [0] * len(stop)
        k = 0
        for i in range(1, len(stop)):
            while k and stop[i] != stop[k]:
                k = self._back[k - 1]
            k += stop[i] == stop[k]
            self._back[i] = k

    def advance(self, character: str) -> bool:
        """Takes a character; True where the text now ends with the whole string."""
        k = self.matched
        while k and character != self.stop[k]:
            k = self._back[k - 1]
        k += character == self.stop[k]
        self.matched = k
        return k == len(self.stop)


def check_stops(stops: Sequence[str]) -> Sequence[str]:
    """Raises InvalidInput for an empty, too long, or too many stop strings."""
    if len(stops) > MOST_STOPS:
        raise InvalidInput(f"stop: {len(stops)} strings; at most {MOST_STOPS} are accepted")
    for stop in stops:
        if not stop or len(stop) > LONGEST_STOP:
            raise InvalidInput(f"stop: a string of {len(stop)} characters; 1 to {LONGEST_STOP} are accepted")
    return stops
