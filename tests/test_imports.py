"""Imports run one way: user API, training plan, module, and what these are made of."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import scdisentangle

ROOT = Path(scdisentangle.__file__).parent
FLOORS = ["_module", "_training_plan", "_model", "tl", "pl", "_integrate", "_cli", "__main__"]
"""From the bottom up, above all that is not named here."""


def floor(name: str) -> int:
    return FLOORS.index(name) if name in FLOORS else -1


def imported(path: Path) -> set[str]:
    """Files and folders of the package that a file imports from, also inside of functions."""
    package = path.relative_to(ROOT.parent).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            start = [*start, *(node.module.split(".") if node.module else [])]
            paths = [[*start, alias.name] for alias in node.names]
        else:
            continue
        names |= {"".join(parts[1:2]) for parts in paths if parts[0] == ROOT.name}
    public = {name for name in names if not name or not find_spec(f"{ROOT.name}.{name}")}
    return names - public | {FLOORS[-1] for _ in public}  # which stand at the top


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_nothing_lower_imports_anything_higher(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__init__":  # the public names, which all stand there
        return
    assert all(floor(name) <= floor(own) for name in imported(path)), imported(path)


def test_what_a_file_imports_is_seen():
    assert {"_module", "_schedules", "_errors"} <= imported(ROOT / "_training_plan.py")
    assert {"_model", "tl", "pl"} <= imported(ROOT / "_integrate.py")
    assert {"_model", "_errors"} <= imported(ROOT / "tl" / "_checks.py")
