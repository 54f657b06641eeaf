"""Protocols: each translates between its bytes and the engine's calls, and knows nothing below the engine."""
