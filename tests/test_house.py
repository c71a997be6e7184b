"""The house: a room stands above what it uses, no arrow runs back up, and there is no circle, in rooms or in files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import dialogpt_jax

PACKAGE = Path(dialogpt_jax.__file__).parent

# From the ground up. A room may use those that stand before it, and itself; a file at the top level is a room.
ROOMS = """
    arguments errors whole_writes freed_memory config token_arrays int8 quantization parameter_shapes text matmul
    embedding normalization cache attention convert weights modules model score_row data likelihood parallel whole_programs
    training decoding replies ranking chat run evaluation bench contents __init__ cli bundled
""".split()  # noqa: SIM905


def files() -> dict[str, Path]:
    """Every module by its dotted name within the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    for path in (PACKAGE / "convert").glob("*.py"):  # before Python 3.13 rglob does not follow a link
        found["convert" if path.stem == "__init__" else f"convert.{path.stem}"] = path
    return found


def arrows() -> dict[str, set[str]]:
    """For each module those that it imports, at its top or inside a function, for running or for types."""
    names = files()
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        used = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dialogpt_jax":
                module = (node.module or "").removeprefix("dialogpt_jax").lstrip(".")
                for alias in node.names:  # `from package import module`, or `from module import name`
                    whole = f"{module}.{alias.name}".lstrip(".")
                    used.add(whole if whole in names else module or "__init__")
            elif isinstance(node, ast.Import):
                used |= {a.name.removeprefix("dialogpt_jax.") for a in node.names if a.name.startswith("dialogpt_jax.")}
        graph[name] = used - {name}
    return graph


def test_every_file_stands_in_a_room():
    assert {name.partition(".")[0] for name in files()} == set(ROOMS)
    assert len(arrows()) > 100


def test_no_arrow_runs_back_up():
    height = {room: number for number, room in enumerate(ROOMS)}
    back = [
        f"{name} uses {used}"
        for name, targets in arrows().items()
        for used in targets
        if height[used.partition(".")[0]] > height[name.partition(".")[0]]
    ]
    assert back == []


def test_no_files_use_each_other_in_a_circle():
    TopologicalSorter(arrows()).prepare()  # raises CycleError, which names the circle
