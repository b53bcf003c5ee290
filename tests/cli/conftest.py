import pytest

from tests.claims.fakes import shelve
from trialrun.cli import main


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """Put the engine tests' fake dossier on the shelf and go to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return shelve(monkeypatch)


@pytest.fixture
def trialrun(capsys):
    """Run the command line in this process; return its code, output and error stream."""

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(words)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run
