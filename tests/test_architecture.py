"""The house keeps its shape: imports point down, heavy libraries stay in the file that owns them, functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "pelton"
FLOORS = [
    {"errors", "types"},
    {"settings", "artifacts", "store"},
    {"packages", "records", "scheduling"},
    {"language", "runtimes", "transforms", "registry", "deployments", "events", "rollout"},
    {"replicas", "importers", "routing"},
    {"engine", "control"},
    {"server", "bench"},
    {"cli", "__main__", "api", "__init__"},  # `import pelton` is a face of the whole; it loads on demand
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SIBLINGS_APART = {
    "server",
    "bench",
    "records",
    "scheduling",
    "engine",
    "control",
}  # rooms that import no other room of their floor
ANYTHING = {"testing"}
# library -> files that may import it; a folder ends with a slash
OWNERS = {
    "onnxruntime": {"runtimes/onnx.py"},
    "torch": {"runtimes/lm/"},
    "triton": {"runtimes/lm/"},
    "xllamacpp": {"runtimes/llama_cpp/library.py"},
    "sklearn": {"importers/"},
    "lightgbm": {"importers/"},
    "xgboost": {"importers/"},
    "PIL": {"transforms/image.py"},
    "soundfile": {"transforms/audio.py"},
    "tokenizers": {"transforms/text.py", "language/tokenizer.py"},
    "jinja2": {"language/sandbox.py"},
    "llguidance": {"language/grammar.py"},
    "openvino": {"runtimes/openvino/"},
    "openvino_genai": set(),  # in a process of its own
    "prometheus_client": {"server/pages/metrics.py"},
    "starlette": {"server/"},
    "uvloop": {"server/", "cli/", "bench/"},
    "sqlalchemy": {"store/", "registry/", "deployments.py", "events.py"},
    "httptools": {"server/", "bench/"},
}
# They take what their GPU kernels take; a class for it would be built once per layer and token.
WIDE = {"decode_attention", "prefill_attention", "rope_and_store"}
MAX_FUNCTION, MAX_FILE, MAX_PARAMETERS = 60, 500, 8
FILES = sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path, ast.parse(path.read_text(), name(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of all modules that are imported, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            if node.module == "pelton":
                yield from (f"pelton.{alias.name}" for alias in node.names)


def rooms_of(tree: ast.Module) -> set[str]:
    return {parts[1] for parts in (module.split(".") for module in imports(tree)) if parts[0] == "pelton" and parts[1:]}


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} <= set(FLOOR) | ANYTHING


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path: Path):
    mine = room(path)
    if mine in ANYTHING:
        return
    for other in rooms_of(ast.parse(path.read_text())) - {mine, "__version__"}:
        assert other not in ANYTHING, f"{name(path)} imports test tools"
        assert other in FLOOR, f"{name(path)} imports the unknown room {other!r}"
        assert FLOOR[other] <= FLOOR[mine], f"{name(path)} imports {other!r} from the floor above"
        if FLOOR[other] == FLOOR[mine]:
            assert mine not in SIBLINGS_APART, f"{name(path)} imports its sibling {other!r}"


def test_no_two_rooms_import_each_other():
    edges: dict[str, set[str]] = {}
    for path, tree in trees():
        edges.setdefault(room(path), set()).update(rooms_of(tree) - {room(path)})
    both = {(a, b) for a, targets in edges.items() for b in targets if a < b and a in edges.get(b, set())}
    assert not both


def test_heavy_libraries_are_imported_by_their_owners_only():
    for path, tree in trees():
        for module in imports(tree):
            owners = OWNERS.get(module.split(".")[0])
            allowed = owners is None or any(
                name(path).startswith(owner) if owner.endswith("/") else name(path) == owner for owner in owners
            )
            assert allowed, f"{name(path)} imports {module}"


def test_the_decisions_touch_neither_clocks_nor_threads_nor_sockets():
    pure = [f"scheduling/{part}.py" for part in ("admission", "batcher", "latency", "inline")]
    for part in pure:
        found = set(imports(ast.parse((SOURCE / part).read_text())))
        assert not found & {"time", "asyncio", "threading", "socket", "random", "concurrent.futures"}, part


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert kernel or lines <= MAX_FUNCTION, f"{name(path)}: {node.name} has {lines} lines"
            arguments = node.args
            count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
            count -= bool(arguments.args) and arguments.args[0].arg in ("self", "cls")
            assert kernel or node.name in WIDE or count <= MAX_PARAMETERS, (
                f"{name(path)}: {node.name} has {count} parameters"
            )


def test_public_modules_say_what_they_are_for():
    for path, tree in trees():
        if not path.stem.startswith("_") or path.stem == "__init__":
            assert ast.get_docstring(tree), f"{name(path)} has no docstring"


def test_there_is_no_place_for_leftovers():
    names = {part for path in FILES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                assert not node.name.endswith(("Manager", "Handler", "Impl")), f"{name(path)}: {node.name}"


def test_help_loads_no_library():
    code = (
        "import sys\n"
        "from pelton.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code in (0, None)\n"
        "heavy = {'numpy', 'onnxruntime', 'starlette', 'uvloop', 'PIL', 'torch', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
