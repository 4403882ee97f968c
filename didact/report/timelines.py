"""Timelines: rows of spans along one time axis."""

from __future__ import annotations

import html
import math

from markupsafe import Markup

from didact import figures
from didact.report import plots, svg

WIDTH, ROW = 800.0, 20.0
MAX_SPANS = 4000  # more are not drawn


def draw(figure: figures.Timeline) -> Markup:
    """Draw the rows from top to bottom, time from left to right, and a legend of the kinds of span."""
    spans = [s for s in figure.spans if math.isfinite(s.start) and math.isfinite(s.end)][:MAX_SPANS]
    if not spans:
        return svg.root(WIDTH, 40, str(figure.title), [svg.text(8, 24, "no spans", "soft")])
    gutter = min(0.3 * WIDTH, 12 + svg.CHARACTER * max(len(str(row)) for row in figure.rows))
    ticks = svg.axis_ticks(min(s.start for s in spans), max(s.end for s in spans), 8)
    names, factor = svg.format_ticks(ticks)
    x_of = svg.scale(ticks[0], ticks[-1], gutter, WIDTH - 10)
    kinds = list(dict.fromkeys(str(s.kind) for s in spans))
    top, bottom = 22.0, 22.0 + ROW * len(figure.rows)
    parts = [svg.line(x_of(v), top, x_of(v), bottom, "grid") for v in ticks]
    parts += [
        svg.text(gutter - 6, top + ROW * (i + 0.5) + 3.8, svg.fitted(str(row), gutter - 8), "end", str(row))
        for i, row in enumerate(figure.rows)
    ]
    for span in spans:
        x, width, y = x_of(span.start), x_of(span.end) - x_of(span.start), top + ROW * span.row
        kind = kinds.index(str(span.kind)) % plots.SERIES + 1
        title = f"{figure.rows[span.row]}, {span.kind} {span.text}: {span.start:g} to {span.end:g}"
        parts.append(
            f'<rect class="mark s{kind}" fill-opacity=".32" x="{x + 0.5:.1f}" y="{y + 1:.1f}" '
            f'width="{max(0.5, width - 1):.1f}" height="{ROW - 2:.1f}"><title>{html.escape(title)}</title></rect>'
        )
        if svg.CHARACTER * len(str(span.text)) < width - 1:
            parts.append(svg.text(x + width / 2, y + ROW / 2 + 3.8, str(span.text), "middle"))
    legend_x = gutter
    for i, name in enumerate(kinds):
        style = f'class="mark s{i % plots.SERIES + 1}" fill-opacity=".32"'
        parts.append(f'<rect {style} x="{legend_x:.1f}" y="2" width="12" height="12"/>')
        parts.append(svg.text(legend_x + 17, 12, name, "soft"))
        legend_x += 32 + svg.CHARACTER * len(name)
    parts += svg.bottom(list(zip(ticks, names, strict=True)), x_of, bottom)
    parts.append(svg.text((gutter + WIDTH) / 2, bottom + 32, f"{figure.x} {factor}".strip(), "soft middle"))
    last = max(s.end for s in spans)
    label = f"{figure.title}: {len(figure.rows)} rows, {len(spans)} spans from {ticks[0]:g} to {last:g}"
    return svg.root(WIDTH, bottom + 38, label, parts, "chart figure")
