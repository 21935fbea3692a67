"""Mutation testing of the objectives, the schedules and the loss: which faults do tests see?

One small change at a time, to an operator, a comparison, a number or a truth value; the tests that
mirror the file then have to fail. Libraries are imported once and each mutant is a fork, so that a
mutant costs its tests and not the imports.

    python benchmarks/mutants.py --sample 200 --csv mutants.csv
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "scdisentangle"
SECONDS = 180

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def targets() -> dict[Path, list[str]]:
    """Files with the tests that mirror them."""
    found = {}
    for path in sorted((SOURCE / "objectives").glob("*.py")):
        mirror = ROOT / "tests" / "objectives" / f"test_{path.stem.lstrip('_')}.py"
        names = [mirror.name] if mirror.exists() else []
        names += ["test_registry.py"] if mirror.name != "test_registry.py" else []
        if path.stem in ("_base", "_kernels", "_estimators", "_soft_clusters"):
            names += ["test_hsic.py", "test_mmd.py", "test_mutual_information.py"]
        if path.stem != "__init__":
            found[path] = [f"tests/objectives/{name}" for name in names]
    found[SOURCE / "_schedules.py"] = ["tests/test_schedules.py", "tests/test_training_plan.py"]
    found[SOURCE / "_loss.py"] = [
        "tests/test_loss.py",
        "tests/test_module.py",
        "tests/test_training_plan.py",
    ]
    return found


def sites(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that can be changed, without annotations and messages of errors."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        if changes(node):
            yield node
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                children = value if isinstance(value, list) else [value]
                stack += [child for child in children if isinstance(child, ast.AST)]


def changes(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        return type(node.op) in SWAPS
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and type(node.ops[0]) in SWAPS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub | ast.Invert | ast.Not)
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float)


def change(node: ast.AST) -> None:
    """Change a node in place."""
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops = [SWAPS[type(node.ops[0])]()]
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.USub()
    elif isinstance(node.value, bool):
        node.value = not node.value
    else:
        node.value = node.value + 1 if node.value == int(node.value) else node.value * 2


class Mutated(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Loads one module from a changed tree."""

    def __init__(self, path: Path, tree: ast.AST):
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        super().__init__(name, str(path))
        self.tree = tree

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return None

    def get_code(self, fullname):
        return compile(self.tree, self.path, "exec")


def survives(path: Path, tree: ast.AST, tests: list[str]) -> bool:
    """Whether the tests pass, in a fork."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        signal.alarm(SECONDS)
        sys.meta_path.insert(0, Mutated(path, tree))
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--capture=no", "--tb=no"]
        os._exit(int(pytest.main([*options, *tests])) != 0)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants, at random (default: all)")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--only", help="files whose name holds this")
    parser.add_argument("--again", type=Path, help="table of a run, of which to try the survivors")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(SOURCE.parent))

    import hyppo.independence  # noqa: F401
    import pytest  # noqa: F401
    import scanpy  # noqa: F401
    import scib_metrics.benchmark  # noqa: F401
    import scvi  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import torch
    import umap  # noqa: F401

    torch.set_num_threads(1)
    jobs, again = [], None
    if arguments.again:
        with arguments.again.open() as file:
            again = [row[:3] for row in csv.reader(file) if row[-1] == "False"]
    for path, tests in targets().items():
        tree = ast.parse(path.read_text())
        if arguments.only and arguments.only not in path.name:
            continue
        if again is None:
            assert survives(path, tree, tests), f"the tests of {path.name} fail without any change"
        jobs += [
            (path, tests, i)
            for i, node in enumerate(sites(tree))
            if again is None or [path.name, str(node.lineno), ast.unparse(node)] in again
        ]
    n_all = len(jobs)
    if arguments.sample is not None:
        jobs = random.Random(0).sample(jobs, min(arguments.sample, n_all))
    killed, start = 0, time.perf_counter()
    with arguments.csv.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "line", "before", "after", "killed"])
        for done, (path, tests, i) in enumerate(jobs, 1):
            tree = ast.parse(path.read_text())
            node = list(sites(tree))[i]
            before = ast.unparse(copy.deepcopy(node))
            change(node)
            alive = survives(path, ast.fix_missing_locations(tree), tests)
            killed += not alive
            table.writerow([path.name, node.lineno, before, ast.unparse(node), not alive])
            file.flush()
            seconds = time.perf_counter() - start
            left = seconds / done * (len(jobs) - done)
            print(f"{done}/{len(jobs)} of {n_all}: {killed} killed, {left / 60:.0f} min left")


if __name__ == "__main__":
    main()
