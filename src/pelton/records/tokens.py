"""The tokens of a window: sums, and histograms of the first token, the time per token, and the length of both texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pelton.records.histogram import SMALLEST, Histogram
from pelton.records.record import TokenUsage

TOKEN: Final = SMALLEST * (1.0 - 1e-9)  # histograms count durations: as the smallest, and surely not a little more
PROVIDER: Final = "pelton"  # gen_ai.provider.name
CHATS: Final = frozenset({"openai", "openai_chat", "openai_responses"})  # protocols
HISTOGRAMS: Final = ("first", "each", "inputs", "outputs")


class TokenSums:
    """What generations took and gave. Sums of any two processes or times add up.

    Counts also those that ended with an error after their first token: their tokens were made. `histograms`: "first",
    seconds to the first token; "each", from one to the next; "inputs" and "outputs", tokens, as multiples of `TOKEN`."""

    def __init__(self) -> None:
        self.generations = 0
        self.prompt = 0
        self.cached = 0
        self.completion = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.histograms = {name: Histogram() for name in HISTOGRAMS}

    def add(self, usages: Sequence[TokenUsage]) -> None:
        """Folds in what began."""
        begun = [usage for usage in usages if usage.completion]
        if not begun:
            return
        self.generations += sum([usage.generations for usage in begun])
        self.prompt += sum([usage.prompt for usage in begun])
        self.cached += sum([usage.cached for usage in begun])
        self.completion += sum([usage.completion for usage in begun])
        self.prefill_seconds += sum([usage.prefill for usage in begun])
        self.decode_seconds += sum([usage.decode for usage in begun])
        self.histograms["first"].add([usage.first for usage in begun])
        each = [usage.per_token for usage in begun if usage.completion > usage.generations]
        if each:
            self.histograms["each"].add(each)
        self.histograms["inputs"].add([usage.prompt * TOKEN for usage in begun])
        self.histograms["outputs"].add([usage.completion * TOKEN for usage in begun])

    def merge(self, other: TokenSums) -> None:
        """Adds other sums to these."""
        self.generations += other.generations
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.prefill_seconds += other.prefill_seconds
        self.decode_seconds += other.decode_seconds
        for name, histogram in other.histograms.items():
            self.histograms[name].merge(histogram)


def operation_of(protocol: str) -> str:
    """What OpenTelemetry calls a call of a language model that came by `protocol`."""
    return "chat" if protocol in CHATS else "text_completion"
