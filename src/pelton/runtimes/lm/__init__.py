"""Our GPU language-model engine: paged KV cache, continuous batching, CUDA graphs, on PyTorch and Triton.

    from pelton.runtimes.lm.engine import LmEngine, EngineOptions
    engine = LmEngine.load("path/to/folder-or-gguf", EngineOptions(device="cuda"))

Reading order: `engine` (the step), `scheduler` and `blocks` (pure decisions), `runner` (device state and CUDA
graphs), `model` (the transformer), `attention` and `kernels/` (how it is computed), `weights` and `gguf` (where
it comes from).
"""
