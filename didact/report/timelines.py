"""Who does what when: rows of spans along one axis of time."""

from __future__ import annotations

import html
import math

from markupsafe import Markup

from didact import figures
from didact.report import plots, svg

WIDTH, ROW = 800.0, 20.0
MOST = 4000  # spans that are drawn


def draw(figure: figures.Timeline) -> Markup:
    """The rows from above, time from left to right, and what each look means."""
    spans = [s for s in figure.spans if math.isfinite(s.start) and math.isfinite(s.end)][:MOST]
    if not spans:
        return svg.root(WIDTH, 40, str(figure.title), [svg.text(8, 24, "nothing happens", "soft")])
    gutter = min(0.3 * WIDTH, 12 + svg.CHARACTER * max(len(str(row)) for row in figure.rows))
    ticks = svg.around(min(s.start for s in spans), max(s.end for s in spans), 8)
    names, factor = svg.named(ticks)
    at = svg.scale(ticks[0], ticks[-1], gutter, WIDTH - 10)
    kinds = list(dict.fromkeys(str(s.kind) for s in spans))
    top, bottom = 22.0, 22.0 + ROW * len(figure.rows)
    parts = [svg.line(at(v), top, at(v), bottom, "grid") for v in ticks]
    parts += [
        svg.text(gutter - 6, top + ROW * (i + 0.5) + 3.8, svg.fitted(str(row), gutter - 8), "end", str(row))
        for i, row in enumerate(figure.rows)
    ]
    for span in spans:
        x, wide, y = at(span.start), at(span.end) - at(span.start), top + ROW * span.row
        kind = kinds.index(str(span.kind)) % plots.SERIES + 1
        said = f"{figure.rows[span.row]}, {span.kind} {span.text}: {span.start:g} to {span.end:g}"
        parts.append(
            f'<rect class="mark s{kind}" fill-opacity=".32" x="{x + 0.5:.1f}" y="{y + 1:.1f}" '
            f'width="{max(0.5, wide - 1):.1f}" height="{ROW - 2:.1f}"><title>{html.escape(said)}</title></rect>'
        )
        if svg.CHARACTER * len(str(span.text)) < wide - 1:
            parts.append(svg.text(x + wide / 2, y + ROW / 2 + 3.8, str(span.text), "middle"))
    left = gutter
    for i, name in enumerate(kinds):
        look = f'class="mark s{i % plots.SERIES + 1}" fill-opacity=".32"'
        parts.append(f'<rect {look} x="{left:.1f}" y="2" width="12" height="12"/>')
        parts.append(svg.text(left + 17, 12, name, "soft"))
        left += 32 + svg.CHARACTER * len(name)
    parts += svg.bottom(list(zip(ticks, names, strict=True)), at, bottom)
    parts.append(svg.text((gutter + WIDTH) / 2, bottom + 32, f"{figure.x} {factor}".strip(), "soft middle"))
    last = max(s.end for s in spans)
    told = f"{figure.title}: {len(figure.rows)} rows, {len(spans)} spans from {ticks[0]:g} to {last:g}"
    return svg.root(WIDTH, bottom + 38, told, parts, "chart figure")
