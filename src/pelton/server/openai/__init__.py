"""The OpenAI API as its clients use it, and Triton's generate extension for the same models.

`routes` hooks all of it into the application of the pages. A request: `decoding` makes a struct of `asks` out of its
body; `chat`, `completions`, `responses` or `triton` check it and make a `plan`; a `run` of generations goes through the
engine; `stream` sends what the run's listener makes of it.
"""
