"""Language models on the CPU through OpenVINO: paged attention and continuous batching, step by step.

    convert   where the graph lies: a folder as it is, or one made of a GGUF file, once
    graph     the graph with paged attention, compiled
    runner    a plan into inputs, inputs into logits
    sampler   logits into tokens; scores: how likely the prompt was
    engine    the step engine, which schedules with `pelton.runtimes.lm.scheduler`
    assembly  all of it for the engine's process, with what was measured

Needs the packages openvino and, for GGUF files, openvino-genai (extra "chat").
"""

from __future__ import annotations

import importlib
import os
from typing import Final

from pelton.errors import ExtraMissing
from pelton.runtimes.engine_process.order import Built, EngineOrder

# oneDNN prepares the products of every number of positions anew and keeps 1024: half a gigabyte. So many are several
# times what the steps of one moment use; no step was measured to be slower.
KEPT_PRODUCTS: Final = "256"


def build(order: EngineOrder) -> Built:
    """In the engine's process. Raises PackageInvalid, ExtraMissing, ModelFailed."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_PRODUCTS)  # read when the library is loaded
    try:
        importlib.import_module("openvino")
    except ImportError:
        raise ExtraMissing("the OpenVINO engine", "chat") from None
    built: Built = importlib.import_module("pelton.runtimes.openvino.assembly").build(order)
    return built
