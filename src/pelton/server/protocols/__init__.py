"""Bodies of each protocol to calls and back."""
