"""One self-contained HTML page per run, comparison, claim and scoreboard: no script, no network.

What a model wrote, and whatever else comes out of a file, is untrusted: the templates escape everything but our own
SVG (which escapes what it is given), and the page's policy lets a browser load nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from didact import files
from didact.report import boards, cards, compared, plans, runs, tables, words
from didact.types import UserError

MADE = '<meta name="generator" content="didact">'
FOLDERS: Mapping[str, tuple[str, str, Callable[[Path], dict[str, Any]]]] = {
    "result.json": ("report.html", "run.html", runs.told),
    "leaderboard.json": ("report.html", "compare.html", compared.told),
    "plan.json": ("report.html", "plan.html", plans.told),
}
"""`{file that marks a folder: (page written into it, template, what the template shows)}`."""


def write(folder: str | Path) -> Path:
    """Write the page of what `folder` holds, and return its path.

    A run or a comparison gets `report.html`; a claim's card, `METHOD.json`, gets `METHOD.html` beside it; a scoreboard
    gets `index.html` and the pages of its cards.

    Raises:
        UserError: there is nothing to show, or the run or comparison is not finished.
    """
    root = Path(folder)
    if root.is_file():
        up = "./index.html" if root.with_name("index.html").exists() else ""
        return _put(root.with_suffix(".html"), "claim.html", cards.told(root) | {"up": up})
    if not root.is_dir():
        raise UserError(
            f"{folder}: no such folder; give the --out folder of a run or comparison, or a scoreboard folder"
        )
    for mark, (name, template, shown) in FOLDERS.items():
        if (root / mark).exists():
            return _put(root / name, template, shown(root))
    if (root / "comparison.json").exists():
        raise UserError(f"{root}: the comparison is not finished: repeat its command, which goes on where it stopped")
    found = [path for path in sorted(root.glob("*.json")) if cards.is_card(runs.read(path))]
    if not found:
        raise UserError(
            f"{folder}: neither a run (no result.json) nor a comparison (no leaderboard.json) nor a scoreboard "
            "(no claim's card)"
        )
    claims = {path.with_suffix(".html"): cards.told(path) for path in found}
    for path, told in claims.items():
        _put(path, "claim.html", told | {"up": "./index.html"})
    real = {path.stem: cards.told(path) for path in sorted((root / "real").glob("*.json"))}
    for name, told in real.items():
        _put(root / "real" / f"{name}.html", "claim.html", told | {"up": "../index.html"})
    return _put(root / "index.html", "scoreboard.html", cards.board(claims, real))


def _put(path: Path, template: str, shown: Mapping[str, Any]) -> Path:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {
        "number": words.number, "interval": words.interval, "value": words.value, "typed": words.typed,
        "many": words.many, "duration": words.duration, "named": boards.named,
    }  # fmt: skip
    env.tests["estimate"] = words.is_estimate
    if path.exists() and not (path.is_file() and MADE in path.read_text(encoding="utf-8", errors="replace")[:1000]):
        raise UserError(f"{path}: not a page that didact wrote, and not replaced: move it")
    text = env.get_template(template).render(reading=tables.ARROWS, **shown)
    with files.new_file(path) as beside:
        # A half surrogate pair, which JSON can hold and UTF-8 cannot, must not stop the page.
        beside.write_text(text, encoding="utf-8", errors="replace")
    return path
