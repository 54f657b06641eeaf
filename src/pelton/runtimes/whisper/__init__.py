"""Speech to text: Whisper models through CTranslate2 (extra `speech`). What protocols need to know of such a package:

`manifest.runtime == "whisper"`. Callers send fields (an ordinary `Engine.submit` with `Call.fields`), one value each:

    audio         a sound file (WAV, FLAC, OGG, MP3): bytes, base64 text, or {"b64": text}; required
    language      "en", "de", ... ("" or left out: the model tells, English-only models know only "en")
    prompt        text before the sound: names, spelling, style; at most 224 tokens count (the last ones)
    temperature   0 to 1; 0 or left out: 0, and higher ones only where the answer fails the model's own checks
    task          "transcribe" (default) or "translate" (to English; multilingual models only)
    words         true: each segment also has its words with their times

`replica.finish(outcome, call.counts)[0]` is the answer:

    {"text": str, "language": "en", "duration": seconds, "segments": [...]}

and each segment is what OpenAI's verbose_json has, in the same names and in seconds of the whole sound:

    {"id": 0, "seek": 0, "start": 0.0, "end": 4.2, "text": " ...", "tokens": [...], "temperature": 0.0,
     "avg_logprob": -0.2, "compression_ratio": 1.3, "no_speech_prob": 0.01,
     "words": [{"word": " ...", "start": 0.0, "end": 0.4, "probability": 0.9}, ...]}     (with words = true)

Silence gives text "" and no segments. A sound that cannot be read is InvalidInput, one that is too long or too big is
TooLarge, an unknown language or task is InvalidInput: each names its field (`input 'audio': ...`).

One row is a window: at most 30 s, cut out of the sound at the quietest place. So rows of several callers run in one
batch, a long sound yields to short ones (it is cut into pieces as every large call is), and one that is cancelled stops
after the windows that run.
"""

from pelton.runtimes.whisper.model import WhisperModel, load

__all__ = ["WhisperModel", "load"]
