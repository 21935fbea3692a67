"""A folder of results is whole or absent, whoever writes beside it."""

import os
import subprocess
import sys

import pytest

from scdisentangle import _output
from scdisentangle._output import complete_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with complete_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "scores.csv").write_text("new")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]


def test_of_two_that_write_at_once_both_are_whole(tmp_path):
    with complete_folder(tmp_path / "out", overwrite=True) as first:
        (first / "scores.csv").write_text("first")
        with complete_folder(tmp_path / "out", overwrite=True) as second:
            assert second != first
            (second / "scores.csv").write_text("second")
        assert (tmp_path / "out" / "scores.csv").read_text() == "second"
    assert (tmp_path / "out" / "scores.csv").read_text() == "first"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(("file", "overwrite"), [("thesis.tex", True), ("scores.csv", False)])
def test_what_came_in_the_meantime_stays_and_the_results_are_beside_it(tmp_path, file, overwrite):
    (tmp_path / "out_2").mkdir()
    with pytest.raises(FileExistsError, match=r"out has changed.*out_3"):
        with complete_folder(tmp_path / "out", overwrite=overwrite) as partial:
            (partial / "scores.csv").write_text("new")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / file).write_text("old")
    assert (tmp_path / "out" / file).read_text() == "old"
    assert (tmp_path / "out_3" / "scores.csv").read_text() == "new"
    assert names(tmp_path) == ["out", "out_2", "out_3"]


def test_the_old_folder_comes_back_where_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.csv").write_text("old")
    monkeypatch.setattr(_output, "flush", lambda partial: partial.rmdir())
    with pytest.raises(OSError), complete_folder(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out" / "scores.csv").read_text() == "old"
    assert names(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from scdisentangle._output import complete_folder
with complete_folder(Path(sys.argv[1]), overwrite=True) as partial:
    (partial / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert done.returncode == -9
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert os.listdir(tmp_path / "out") == ["a"]
