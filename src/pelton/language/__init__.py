"""What text is to a language model: its tokens, its chat template, its tool calls, and the grammar of its output.

A package of the runtime "language" brings `language.json` (the card) and `tokenizer.json`; nothing here reads weights
or knows an engine. Importing this is cheap: the libraries are loaded with the first model.
"""
