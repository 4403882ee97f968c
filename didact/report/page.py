"""Write one self-contained HTML page per run, comparison, plan, claim and scoreboard: no script, no network.

Model output, and everything else read from files, is untrusted: the templates escape everything but our own SVG
(which escapes its texts itself), and the page's content security policy forbids a browser to load anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from didact import files
from didact.report import boards, cards, compared, plans, runs, tables, words
from didact.types import UserError

GENERATOR = '<meta name="generator" content="didact">'
FOLDERS: Mapping[str, tuple[str, str, Callable[[Path], dict[str, Any]]]] = {
    "result.json": ("report.html", "run.html", runs.template_context),
    "leaderboard.json": ("report.html", "compare.html", compared.template_context),
    "plan.json": ("report.html", "plan.html", plans.template_context),
}
"""`{file that identifies the kind of folder: (page to write, template, function that reads its context)}`."""


def write(folder: str | Path) -> Path:
    """Write the page for `folder`, and return its path.

    A run, comparison or plan gets `report.html`; a claim's card, `METHOD.json`, gets `METHOD.html` beside it; a
    scoreboard folder gets `index.html` and a page for each of its cards.

    Raises:
        UserError: the folder has nothing to show, or its run or comparison is not finished.
    """
    root = Path(folder)
    if root.is_file():
        scoreboard = "./index.html" if root.with_name("index.html").exists() else ""
        return _render(root.with_suffix(".html"), "claim.html", cards.template_context(root) | {"up": scoreboard})
    if not root.is_dir():
        raise UserError(
            f"{folder}: no such folder; give the --out folder of a run or comparison, or a scoreboard folder"
        )
    for mark, (name, template, context_of) in FOLDERS.items():
        if (root / mark).exists():
            return _render(root / name, template, context_of(root))
    if (root / "comparison.json").exists():
        raise UserError(f"{root}: the comparison is not finished: run its command again to resume it")
    card_paths = [path for path in sorted(root.glob("*.json")) if cards.is_card(runs.read(path))]
    if not card_paths:
        raise UserError(
            f"{folder}: neither a run (no result.json) nor a comparison (no leaderboard.json) nor a scoreboard "
            "(no claim's card)"
        )
    claims = {path.with_suffix(".html"): cards.template_context(path) for path in card_paths}
    for path, context in claims.items():
        _render(path, "claim.html", context | {"up": "./index.html"})
    real = {path.stem: cards.template_context(path) for path in sorted((root / "real").glob("*.json"))}
    for name, context in real.items():
        _render(root / "real" / f"{name}.html", "claim.html", context | {"up": "../index.html"})
    return _render(root / "index.html", "scoreboard.html", cards.board(claims, real))


def _render(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {
        "number": words.number, "interval": words.interval, "value": words.value, "typed": words.typed,
        "many": words.many, "duration": words.duration, "named": boards.display_name,
    }  # fmt: skip
    env.tests["estimate"] = words.is_estimate
    if path.exists() and not (
        path.is_file() and GENERATOR in path.read_text(encoding="utf-8", errors="replace")[:1000]
    ):
        raise UserError(f"{path}: didact did not write this file and does not overwrite it: move it away")
    text = env.get_template(template).render(reading=tables.ARROWS, **context)
    with files.new_file(path) as temporary:
        # JSON can hold a lone surrogate, which UTF-8 cannot encode: replace it rather than fail.
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path
