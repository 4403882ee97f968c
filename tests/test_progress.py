"""Scoring and answering report progress where a verb asks for it, and are silent elsewhere."""

import pytest

from didact import progress
from didact.evaluate import forgetting
from didact.infer import generate


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(progress, "EVERY", -1.0)


def test_scoring_and_answering_are_counted_inside_and_silent_outside(taught, world, impatient, capsys):
    model, records = taught("llama"), world.retain[:4]
    with progress.labelled("before training"), progress.within("K = 2"):
        forgetting.answer_scores(model, records)
        generate.generate(model, [r.prompt for r in records], rows=2)
    err = capsys.readouterr().err
    assert "before training, K = 2: answering: 3/4 records" in err and "s left" in err
    with progress.within("K = 2"):
        generate.generate(model, [r.prompt for r in records])
    with pytest.raises(ZeroDivisionError), progress.labelled("x"), progress.Counted("scoring", 3) as bar:
        bar.advance()
        1 / 0  # noqa: B018
    assert capsys.readouterr().err.count("\n") == 1 and not progress._open


def test_what_takes_no_time_shows_nothing(capsys):
    with progress.labelled("x"), progress.Counted("scoring", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert capsys.readouterr().err == ""
