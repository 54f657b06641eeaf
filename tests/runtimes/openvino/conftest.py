"""Tests of the OpenVINO engine. Without the package none is collected."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("openvino") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).parent))  # for tiny_graph and ran, which the tests share
