"""Streams of completions over HTTP, in a process of their own: `python load.py URL MODEL STREAMS PROMPT NEW SEED`.

Prompts are random token ids, so no prefix cache helps anybody. Prints one JSON object: seconds from the first request to
the last token, tokens that came, and the time to the first token of each stream.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from urllib.parse import urlsplit

LOW, HIGH = 1000, 40000  # ordinary tokens of SmolLM2's vocabulary


def prompts(streams: int, length: int, seed: int) -> list[list[int]]:
    """The same for every engine."""
    source = random.Random(seed)
    return [[source.randrange(LOW, HIGH) for _ in range(length)] for _ in range(streams)]


async def stream(url: str, body: dict[str, object], key: str, began: float) -> tuple[float, float, int]:
    """One completion: seconds to its first and last token since `began`, and how many tokens came."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    data = json.dumps(body).encode()
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{authorization}"
        f"content-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    first = last = 0.0
    tokens = 0
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{url} answered {status!r} {(await reader.read(2000))!r}")
    async for line in reader:
        if not line.startswith(b"data:"):
            continue
        if b"[DONE]" in line:
            break
        now = time.perf_counter() - began
        event = json.loads(line[5:])
        if "error" in event:
            raise SystemExit(f"an error in the stream: {event}")
        usage = event.get("usage")
        if usage:
            tokens = usage["completion_tokens"]
        if event.get("choices"):
            first = first or now
            last = now
    writer.close()
    return first, last, tokens


async def main() -> None:
    url, model, streams, length, new, seed = sys.argv[1:7]
    key = sys.argv[7] if len(sys.argv) > 7 else ""
    began = time.perf_counter()
    shared = {
        "model": model,
        "max_tokens": int(new),
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
    }
    if not key:
        del shared["cache_prompt"]  # llama.cpp's own field
    ended = await asyncio.gather(
        *(
            stream(url, {**shared, "prompt": prompt}, key, began)
            for prompt in prompts(int(streams), int(length), int(seed))
        )
    )
    firsts = sorted(first for first, _, _ in ended)
    print(
        json.dumps(
            {
                "seconds": max(last for _, last, _ in ended),
                "tokens": sum(tokens for _, _, tokens in ended),
                "ttft": firsts[len(firsts) // 2],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
