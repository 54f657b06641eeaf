"""Makes the picture and the sound of demo/examples: a line of an invoice, and a tone of 440 Hz (the note A4)."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent / "examples"
LINE = "Invoice 4711: 128.50 EUR"
RATE = 11_025  # samples a second
SECONDS = 1.5


def main() -> None:
    HERE.mkdir(exist_ok=True)
    picture = Image.new("L", (400, 64), 245)
    ImageDraw.Draw(picture).text((12, 14), LINE, fill=20, font=ImageFont.load_default(30))
    picture.save(HERE / "invoice-line.png", optimize=True)
    at = np.arange(int(RATE * SECONDS)) / RATE
    tone = sum(np.sin(2 * np.pi * 440 * k * at) / k**2 for k in (1, 2, 3)) * np.exp(-at)
    with wave.open(str(HERE / "a4.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((tone * 16_000).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
