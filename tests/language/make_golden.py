"""What llama.cpp's own tokenizer makes of difficult texts, with SmolLM2's vocabulary. Run by hand:

    python tests/language/make_golden.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

`special`: names of control tokens in the text become these tokens.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

import xllamacpp

GOLDEN = Path(__file__).parent / "golden" / "smollm2_tokens.json"
TEXTS = [
    "Hello, world!",
    "",
    " ",
    "  leading and trailing  ",
    "a b  c   d    e",
    "\n",
    "one\ntwo\n\nthree\n\n\n four\r\n five\t\ttabs\n \n",
    "1 12 123 1234567890 3.14159 1,000,000 0x1F 2026-11-24",
    "x=1;y=22;z=333",
    "don't I'll we've it's THEY'RE I'm you'd",
    "naïve café Größe Straße ﬁ ligature",
    "привет мир, как дела?",
    "你好,世界!今天天气怎么样?",
    "こんにちは世界 カタカナ",
    "한국어 텍스트",
    "مرحبا بالعالم ١٢٣",
    "हिन्दी १२३",
    "emoji 🙂🚀 family 👩‍👩‍👧‍👦 flag 🇫🇷 skin 👍🏽",
    "combining é vs é, zero width\u200bspace, nbsp\u00a0here",
    "½ ² ③ Ⅳ 万 superscripts",
    "def f(x):\n    return {'a': [1, 2, 3]}\n\n\tif x != 0 and y >= 1: pass  # comment",
    '{"name": "value", "n": -1.5e-10, "list": [true, false, null]}',
    "https://example.org/path?q=1&r=%20#frag user@example.org",
    "!!!??? ... --- ___ *** ((())) [[]] {{}} <<>> \\\\ ``` ~~~",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text <|endoftext|> text <|im_start|> text",
    "<|im_start|><|im_end|>",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "\x00\x01\x7f control",
    "mixed 中文 and English, и русский 123 abc",
    "a" * 100,
    " " * 50 + "x",
]


def main(path: Path) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    server = xllamacpp.Server(params)

    def ids(text: str, special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    cases = [{"text": text, "plain": ids(text, False), "special": ids(text, True)} for text in TEXTS]
    GOLDEN.parent.mkdir(exist_ok=True)
    made_by = f"llama.cpp in xllamacpp {version('xllamacpp')}"
    lines = ",\n".join(json.dumps(case) for case in cases)
    GOLDEN.write_text(f'{{"made_by": {json.dumps(made_by)}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
