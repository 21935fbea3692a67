import doctest
import importlib
import inspect
import logging
import pkgutil
from pathlib import Path

import pytest

import scdisentangle


class Checker(doctest.OutputChecker):
    """Progress bars are not what an example shows, however slow."""

    def check_output(self, want, got, optionflags):
        lines = got.splitlines(keepends=True)
        shown = "".join(line for line in lines if "it/s" not in line and "s/it" not in line)
        return super().check_output(want, shown if shown.strip() else "", optionflags)


FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMESPACES = ("", "data", "objectives", "pl", "pp", "tl")
DEEPER = {"mmd": ["mmd2"], "hsic": ["hsic", "cka"], "mutual_information": ["club", "leave_one_out"]}
"""Functions of the API reference that are reached by the module of their objective."""


def examples():
    modules = [scdisentangle.__name__] + [
        found.name
        for found in pkgutil.walk_packages(scdisentangle.__path__, f"{scdisentangle.__name__}.")
    ]
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in modules for test in finder.find(importlib.import_module(name))]
    return [test for test in found if test.examples]


def public_functions():
    for namespace in NAMESPACES:
        module = importlib.import_module(f"scdisentangle.{namespace}".rstrip("."))
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                yield pytest.param(getattr(module, name), id=f"{namespace}.{name}".lstrip("."))
    for namespace, names in DEEPER.items():
        module = importlib.import_module(f"scdisentangle.objectives.{namespace}")
        yield from (pytest.param(getattr(module, name), id=f"objectives.{name}") for name in names)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    """Messages are not what an example shows, and what it writes goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_examples_give_what_they_show(test):
    runner = doctest.DocTestRunner(Checker(), optionflags=FLAGS)
    said = []
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_have_an_example(function):
    assert ">>> " in (inspect.getdoc(function) or "")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_names_are_in_the_api_reference(namespace):
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text().split()
    names = importlib.import_module(f"scdisentangle.{namespace}".rstrip(".")).__all__
    listed = {f"{namespace}.{name}".lstrip(".") for name in names if name not in NAMESPACES}
    assert listed <= set(page)
