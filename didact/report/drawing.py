"""Draw the figures that methods declare (`didact.figures`) from the file of a run, whose content is not trusted."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from didact import figures
from didact.report import plots, svg, timelines, trees, words
from didact.types import UserError

WIDTH = 640.0
FULL, READ = 1.0, 0.5  # opacity of the darkest shade, without and with numbers printed on it
CELL_SIZES = (11.0, 46.0)  # px: smallest and largest width of a heat map's cells
MAX_DOTS = 2000  # per series


def draw(row: Mapping[str, Any]) -> Markup:
    """Draw a figure from its row, as `figures.as_row` writes it."""
    figure = figures.of_row(row)
    picture: Markup = DRAW[str(row["kind"])](figure)
    return picture


def standalone_svg(row: Mapping[str, Any]) -> str:
    """A standalone picture with its title and style sheet, for a file or a notebook."""
    picture = draw(row)
    style = (Path(__file__).parent / "plots.css").read_text(encoding="utf-8")
    width, height = (float(v) for v in picture.split('viewBox="0 0 ')[1].split('"')[0].split())
    size = f'width="{width + 32:g}" height="{height + 50:g}"'
    title = svg.text(0, 14, svg.fitted(str(row["title"]), width * 0.92), "title", str(row["title"]))
    nested = str(picture).replace("<svg", f'<svg width="{width:g}" height="{height:g}"', 1)
    return "".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 -14 {width + 32:g} {height + 50:g}" {size}>',
        f'<style>{style}</style><rect class="sheet" x="-16" y="-14" rx="6" {size}/>{title}',
        f'<g transform="translate(0 28)">{nested}</g></svg>\n',
    ])  # fmt: skip


def _curves(figure: figures.Curves) -> Markup:
    lines = [
        plots.Line(str(line.name), *([svg.number(v) for v in c] for c in (line.x, line.y, line.low, line.high)))
        for line in figure.lines
    ]
    return plots.chart(
        lines, str(figure.x), str(figure.y), bool(figure.log), str(figure.title), _as_floats(figure.levels), 640, 320
    )


def _as_floats(levels: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): svg.number(v) for name, v in levels.items()}


# --- bars ------------------------------------------------------------------------------------


def _bars(figure: figures.Bars) -> Markup:
    levels = {name: v for name, v in _as_floats(figure.levels).items() if math.isfinite(v)}
    numbers = [[svg.number(v) for v in (bar.estimate, bar.low, bar.high)] for bar in figure.bars]
    finite = [v for row in numbers for v in row if math.isfinite(v)] + [*levels.values(), 0.0]
    ticks = svg.axis_ticks(min(finite), max(finite), 5)
    names, factor = svg.format_ticks(ticks)
    gutter = min(0.4 * WIDTH, 12 + svg.CHARACTER * max((len(str(bar.name)) for bar in figure.bars), default=0))
    x_of = svg.scale(ticks[0], ticks[-1], gutter + 4, WIDTH - 60)
    top = 6.0 + svg.LINE * len(levels)
    parts, label_parts, y, group = [], [], top, ""
    for bar, (estimate, low, high) in zip(figure.bars, numbers, strict=True):
        if bar.group and bar.group != group:
            y += 6 if group else 0
            parts.append(svg.text(0, y + 14, svg.fitted(str(bar.group), WIDTH), "strong halo"))
            y, group = y + 20, bar.group
        parts.append(svg.text(gutter - 4, y + 13, svg.fitted(str(bar.name), gutter - 6), "end", str(bar.name)))
        if math.isfinite(estimate):
            left, width = min(x_of(0), x_of(estimate)), abs(x_of(estimate) - x_of(0))
            parts.append(f'<rect class="bar" x="{left:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="14"/>')
            parts += svg.whiskers(x_of(low), x_of(high), y + 9) if math.isfinite(low) and math.isfinite(high) else []
            ends = (low, high) if math.isfinite(low) and math.isfinite(high) else None
            parts.append(svg.text(WIDTH, y + 13, words.number(estimate, ends), "end"))
        name = f"{bar.group}, {bar.name}" if bar.group else str(bar.name)
        label_parts.append(f"{name} {estimate:.3g}" + (f" ({low:.3g} to {high:.3g})" if math.isfinite(low) else ""))
        y += 20
    grid = [svg.line(x_of(v), top, x_of(v), y + 4, "axis" if v == 0 else "grid") for v in ticks]
    for i, (name, v) in enumerate(levels.items()):
        parts.append(svg.line(x_of(v), svg.LINE * (i + 1), x_of(v), y + 4, "least"))
        side, x = ("end", x_of(v) - 4) if x_of(v) > WIDTH / 2 else ("", x_of(v) + 4)
        parts.append(svg.text(x, svg.LINE * (i + 1) + 4, svg.fitted(name, WIDTH / 2), side, name))
        label_parts.append(f"{name} is {v:.3g}")
    axis = svg.bottom(list(zip(ticks, names, strict=True)), x_of, y + 4)
    axis_label = " ".join(filter(None, (str(figure.x), factor and f"({factor})")))
    axis.append(svg.text((gutter + WIDTH - 60) / 2, y + 36, svg.fitted(axis_label, WIDTH - gutter), "soft middle"))
    return svg.root(WIDTH, y + 42, f"{figure.title}: {'; '.join(label_parts)}", grid + parts + axis, "chart figure")


# --- heat maps -------------------------------------------------------------------------------


def _heat(figure: figures.Heat) -> Markup:
    columns, rows = ([_short(v) for v in names] for names in (figure.columns, figure.rows))
    values = [[svg.number(v) for v in row] for row in figure.values]
    finite = [v for row in values for v in row if math.isfinite(v)]
    low, high = (
        (svg.number(v) for v in figure.ends) if figure.ends else (min(finite, default=0), max(finite, default=1))
    )
    gutter = min(0.34 * WIDTH, 26 + svg.CHARACTER * max(map(len, rows), default=0))
    cell_width = min(CELL_SIZES[1], max(CELL_SIZES[0], (WIDTH - gutter - 20) / max(len(columns), 1)))
    cell_height = min(cell_width, 30.0)
    show_numbers = cell_width >= 30
    top, width = 24.0, max(gutter + cell_width * len(columns) + 16, 340.0)
    parts = [svg.text(gutter, 11, svg.fitted(f"{figure.y} down, {figure.x} across", width - gutter), "soft")]
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + cell_height * i
        if cell_height >= 11 or i % 2 == 0:
            parts.append(
                svg.text(gutter - 7, y + cell_height / 2 + 3.8, svg.fitted(name, gutter - 8), "tick end", name)
            )
        for j, v in enumerate(row):
            parts += _cell(
                v,
                gutter + cell_width * j,
                y,
                (cell_width, cell_height),
                (low, high),
                f"{name}, {columns[j]}",
                show_numbers,
            )
    bottom = top + cell_height * len(rows)
    slanted = svg.CHARACTER * max(map(len, columns), default=0) > cell_width - 4
    for j, name in enumerate(columns):
        x = gutter + cell_width * (j + 0.5)
        if slanted:
            text = html.escape(svg.fitted(name, 110))
            parts.append(
                f'<text class="tick end" transform="translate({x + 3:.1f} {bottom + 9:.1f}) rotate(-60)">{text}</text>'
            )
        else:
            parts.append(svg.text(x, bottom + 14, name, "tick middle"))
    bottom += 14 + min(110, svg.CHARACTER * max(map(len, columns), default=0)) * (0.87 if slanted else 0.0)
    parts += _ramp(str(figure.value), low, high, gutter, bottom + 12, READ if show_numbers else FULL)
    label = "; ".join(f"{n}: " + ", ".join(f"{v:.3g}" for v in row) for n, row in zip(rows, values, strict=True))
    return svg.root(width, bottom + 42, f"{figure.title}, {figure.value}: {label[:2000]}", parts, "chart figure")


def _cell(
    v: float, x: float, y: float, size: tuple[float, float], ends: tuple[float, float], name: str, show_number: bool
) -> list[str]:
    if not math.isfinite(v):
        return [svg.text(x + size[0] / 2, y + size[1] / 2 + 3.8, "·", "soft middle")]
    shade, kind = _shade(v, *ends)
    title = f"<title>{html.escape(f'{name}: {v:.4g}')}</title>"
    place = f'x="{x:.1f}" y="{y:.1f}" width="{size[0] - 1:.1f}" height="{size[1] - 1:.1f}"'
    parts = [
        f'<rect class="{kind}" fill-opacity="{(READ if show_number else FULL) * shade:.3f}" {place}>{title}</rect>'
    ]
    return parts + ([svg.text(x + size[0] / 2, y + size[1] / 2 + 3.8, _cell_text(v), "middle")] if show_number else [])


def _shade(v: float, low: float, high: float) -> tuple[float, str]:
    """Opacity and CSS class of a cell; on a scale with negative and positive values, each sign has its colour."""
    if low < 0 < high:
        return min(1.0, abs(v) / max(-low, high)), "cell minus" if v < 0 else "cell"
    return (min(1.0, max(0.0, (v - low) / (high - low))) if high > low else 0.5), "cell"


def _ramp(value: str, low: float, high: float, x: float, y: float, full: float) -> list[str]:
    """The legend of the shades."""
    parts = [svg.text(x, y + 24, svg.fitted(value, 300), "soft")]
    for i in range(20):
        shade, kind = _shade(low + (high - low) * (i + 0.5) / 20, low, high)
        place = f'x="{x + 40 + 6 * i:.1f}" y="{y:.1f}" width="6.2" height="10"'
        parts.append(f'<rect class="{kind}" fill-opacity="{full * shade:.3f}" {place}/>')
    return [
        *parts,
        svg.text(x + 34, y + 9, _scale_end(low), "tick end"),
        svg.text(x + 166, y + 9, _scale_end(high), "tick"),
    ]


def _short(value: Any) -> str:
    """Format a name or a number of an axis."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return words.minus(f"{value:,g}") if 1e-3 <= abs(value) < 1e6 or not value else words.short(value)


def _scale_end(value: float) -> str:
    """Format an end of a scale."""
    return _short(float(f"{value:.3g}"))


def _cell_text(value: float) -> str:
    """Format a value in two digits, as many as fit in a cell."""
    return words.minus(f"{value:.2f}" if 0.01 <= abs(value) < 10 or not value else f"{value:.2g}")


# --- scatter plots ---------------------------------------------------------------------------


def _scatter(figure: figures.Scatter) -> Markup:
    series = [
        (str(p.name), [(svg.number(x), svg.number(y)) for x, y in zip(p.x, p.y, strict=True)][:MAX_DOTS], p.names)
        for p in figure.points
    ]
    finite = [xy for _, dots, _ in series for xy in dots if all(map(math.isfinite, xy))]
    if not finite:
        return svg.root(WIDTH, 40, str(figure.title), [svg.text(8, 24, "no finite value", "soft")])
    axes = [[v[axis] for v in finite] for axis in (0, 1)]
    if figure.diagonal:
        axes = [axes[0] + axes[1]] * 2
    xticks, yticks = (svg.axis_ticks(min(side), max(side), 5) for side in axes)
    (xnames, xfactor), (ynames, yfactor) = svg.format_ticks(xticks), svg.format_ticks(yticks)
    left, bottom = 14 + svg.CHARACTER * max(map(len, ynames)), 340.0
    x_of = svg.scale(xticks[0], xticks[-1], left + 8, WIDTH - 110)
    y_of = svg.scale(yticks[0], yticks[-1], bottom, 28)
    parts = [svg.line(left, y_of(v), WIDTH - 102, y_of(v), "axis" if v == yticks[0] else "grid") for v in yticks]
    parts += [svg.text(left - 7, y_of(v) + 3.8, n, "tick end") for v, n in zip(yticks, ynames, strict=True)]
    parts += svg.bottom(list(zip(xticks, xnames, strict=True)), x_of, bottom)
    parts.append(svg.text(left - 6, 12, svg.fitted(f"{figure.y} {yfactor}".strip(), WIDTH / 2), "soft"))
    parts.append(svg.text((left + WIDTH - 102) / 2, bottom + 32, f"{figure.x} {xfactor}".strip(), "soft middle"))
    if figure.diagonal:
        ends = max(xticks[0], yticks[0]), min(xticks[-1], yticks[-1])
        parts.append(svg.line(x_of(ends[0]), y_of(ends[0]), x_of(ends[1]), y_of(ends[1]), "least"))
    labels: list[tuple[float, float, str, str]] = []
    for i, (name, dots, names) in enumerate(series):
        style = i % plots.SERIES + 1
        positions = [(x_of(x), y_of(y)) for x, y in dots if math.isfinite(x) and math.isfinite(y)]
        parts += [plots.mark(style, *position) for position in positions]
        parts += [svg.text(x + 7, y + 3.8, str(n), "halo") for (x, y), n in zip(positions, names, strict=False)]
        if positions and len(series) > 1:
            labels.append((*max(positions)[::-1], name, f"name s{style}"))
    parts += plots.line_labels(labels, WIDTH - 102, (28, bottom), 90)
    label = "; ".join(f"{name}: {len(dots)} points" for name, dots, _ in series)
    return svg.root(WIDTH, bottom + 38, f"{figure.title}, {figure.y} by {figure.x}: {label}", parts, "chart figure")


DRAW: Mapping[str, Callable[[Any], Markup]] = {
    "curves": _curves, "bars": _bars, "heat": _heat, "scatter": _scatter, "trees": trees.draw,
    "timeline": timelines.draw,
}  # fmt: skip


def load_figures(folder: Path) -> list[tuple[str, Markup, str]]:
    """Title, picture and note of every figure in a run's folder.

    Raises:
        UserError: the file was not written by didact.
    """
    path = folder / "figures.json"
    if not path.exists():
        return []
    try:
        rows = [figures.as_row(figure) for figure in figures.read(folder)]
        return [(str(row["title"]), draw(row), str(row["note"])) for row in rows]
    except (TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not figures of didact ({error}); repeat the run") from None
