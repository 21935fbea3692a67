"""Every cell of every tutorial runs: with few cells and few epochs, and without a network."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import scanpy as sc

import scdisentangle

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
MOST_CELLS, EPOCHS = 300, 2


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    simulated, train = scdisentangle.data.simulated, scdisentangle.DisentangleModel.train

    def fewer_cells(n_cells=2000, *args, **kwargs):
        return simulated(min(n_cells, MOST_CELLS), *args, **kwargs)

    def fewer_epochs(self, max_epochs=None, **kwargs):
        return train(self, max_epochs=EPOCHS, **kwargs)

    def no_network(*_):
        raise OSError("no network in tests")

    monkeypatch.setattr(scdisentangle.data, "simulated", fewer_cells)
    monkeypatch.setattr(scdisentangle.DisentangleModel, "train", fewer_epochs)
    monkeypatch.setattr(sc.datasets, "pbmc3k", no_network)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setitem(scdisentangle.objectives.OBJECTIVES, "batch_means", None)  # taken back
    monkeypatch.chdir(tmp_path)


def test_all_six_are_there():
    assert [path.name[0] for path in TUTORIALS] == list("123456")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, small):
    names = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path)):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), names)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_is_committed_as_it_ran(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds
    assert kinds & {"display_data", "execute_result"}
    assert path.stat().st_size < 1_000_000
