"""The tier `real`: on Gemma 3 270M, where `DIDACT_REAL_MODEL` names its folder (`make real-smoke`); else skipped."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from didact import cli
from didact.claims import real, runner
from didact.report import page
from didact.types import UserError


def test_a_claim_of_the_tier_real_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(real.MODEL, str(tmp_path / "nowhere"))
    assert cli.main(["claim", "npo", "--tier", "real", "--scoreboard", str(tmp_path)]) == 2
    assert "DIDACT_REAL_MODEL" in capsys.readouterr().err
    assert cli.main(["claim", "spin", "--tier", "real", "--scoreboard", str(tmp_path)]) == 2
    stderr = capsys.readouterr().err
    assert "spin has no claim on a pre-trained model" in stderr and "npo" in stderr
    assert not list(tmp_path.iterdir())


def test_missing_data_is_told_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv(real.DATA, str(tmp_path))
    with pytest.raises(UserError, match=r"banking77/test.csv: no such file"):
        real.rows("banking77/test.csv")


@pytest.mark.parametrize("method", real.claims(runner.claims()))
def test_real_claims_are_claims_of_their_methods(method):
    claim = runner.load(method, "real")
    assert claim.method == method and claim.gates and claim.tests
    assert claim.modules[0] == runner.load(method).modules[0]


@pytest.mark.parametrize("method", real.claims(runner.claims()))
def test_real_cards_are_current(method):
    path = runner.place(method, "scoreboard", "real")
    if path.exists():
        assert not runner.stale(path), f"code changed since it was measured; run: didact claim {method} --tier real"


def test_a_real_card_is_a_column_of_the_scoreboard(tmp_path):
    card = json.loads(runner.place("npo", "scoreboard").read_text())
    runner.write(card, tmp_path)
    runner.write(card | {"tier": "real", "verdict": "fails"}, tmp_path)
    html = page.write(tmp_path).read_text()
    assert 'href="./real/npo.html"' in html and (tmp_path / "real" / "npo.html").exists()
    assert "../index.html" in (tmp_path / "real" / "npo.html").read_text()
    runner.write(card, tmp_path / "alone")
    assert "real/npo" not in page.write(tmp_path / "alone").read_text()


def test_pictures_of_a_pre_trained_model_are_those_of_its_cards():
    spec = importlib.util.spec_from_file_location("pictures", Path(__file__).parent.parent / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    for method in pictures.PICTURES:
        assert pictures.place(method).read_text() == pictures.drawn(method).svg(), "run: python docs/pictures.py"
        assert f"assets/{method}-gemma.svg" in (pictures.ROOT / "docs" / f"{method}.md").read_text()


@pytest.mark.skipif(not os.environ.get(real.MODEL), reason="no folder of Gemma 3 270M: make real-smoke")
def test_gemma_knows_capitals_and_forgets_one_while_a_neighbour_stays():
    from didact import unlearning
    from didact.claims import lab
    from didact.claims.unlearning import npo_real
    from didact.evaluate import forgetting
    from didact.types import Fit

    facts = npo_real.known_capitals()
    assert len(facts) >= 30
    fit = Fit(lr=3e-4, lora=8, steps=8, rows=2)
    model = lab.model_of(unlearning.npo(real.model(), facts[:2], facts[2:6], fit=fit))
    forgotten, neighbour = (
        float(forgetting.answers(model, part, end=False)["probability"].mean()) for part in (facts[:2], facts[6:16])
    )
    assert forgotten < 0.1 < neighbour
