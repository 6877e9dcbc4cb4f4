"""The house: folders are floors, and imports go down only. Read from the sources, imports inside functions included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"autocompress": ROOT / "autocompress", "autocompress_envs": ROOT / "envs" / "autocompress_envs"}

# From the roof to the ground: a room may import rooms of lower floors, none of its own floor or above.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"doctor", "mcp"},
    {"autocompress"},  # the package itself, which names what its users call
    {"api", "extensions", "testing"},
    {"comparison", "policy_training"},
    {"report"},
    {"job"},
    {"policies", "targets"},
    {"execute", "searchers"},
    {"evaluation"},
    {"menus"},
    {"network", "models"},
    {"data", "run", "tasks"},
    {"config"},
    {"plan", "cache", "checked_tensors", "machine"},
    {"budget", "registry", "files", "borrowed", "memory", "onnx_runtime", "progress", "quiet", "samples", "workers"},
    {"errors", "version"},
    {"autocompress_envs"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """Every module of both packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(path, known):
    """Modules of `known` that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known or node.module in known:
                    yield name if name in known else node.module


def room(module):
    """`autocompress.job.load` is in the room `job`; the environment's package is one room, as seen from outside."""
    package, *rest = module.split(".")
    return rest[0] if package == "autocompress" and rest else package


@pytest.fixture(scope="module")
def arrows():
    """(importing module, imported module) of every import."""
    known = modules()
    return {(module, target) for module, path in known.items() for target in imports(path, known) if module != target}


def test_every_room_has_a_floor():
    assert {room(module) for module in modules()} == set(FLOOR_OF)


def test_no_arrow_runs_up_or_sideways(arrows):
    wrong = {
        f"{source} -> {target}"
        for source, target in arrows
        if room(source) != room(target) and FLOOR_OF[room(source)] >= FLOOR_OF[room(target)]
    }
    assert sorted(wrong) == []


def test_no_modules_import_each_other_in_a_circle(arrows):
    """Modules that import nothing that is left are peeled off, again and again; a circle can't be peeled."""
    left = {module: set() for arrow in arrows for module in arrow}
    for source, target in arrows:
        left[source].add(target)
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    assert {module: sorted(targets & left.keys()) for module, targets in left.items()} == {}


def test_a_wrong_arrow_is_found(arrows):
    """The test can fail: an import of the job by the menus would be one that runs up."""
    assert FLOOR_OF["menus"] >= FLOOR_OF["job"]
    assert ("autocompress.menus.build", "autocompress.menus.menus") in arrows
