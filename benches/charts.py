"""Charts as small SVG files that read well on light and on dark pages. No dependencies."""

from html import escape

# Of the series, on light and on dark pages: grey, blue, amber, violet, green, pale.
LIGHT = "#8c959f", "#0969da", "#bf8700", "#8250df", "#1a7f37", "#d1d9e0"
DARK = "#9198a1", "#4493f8", "#d29922", "#ab7df8", "#3fb950", "#3d444d"


def colours(values):
    return " ".join(
        f".c{i} {{ fill: {c} }} .line.c{i} {{ stroke: {c}; fill: none }}"
        for i, c in enumerate(values)
    )


STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
text { fill: #1f2328 }
text.small { font-size: 11px }
text.title { font-weight: 600; font-size: 15px }
text.dim { fill: #59636e }
text.on { fill: #ffffff }
text.code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre }
.end { text-anchor: end } .middle { text-anchor: middle }
.page { fill: #ffffff; stroke: #d1d9e0 }
.grid { stroke: #d1d9e0; fill: none } .line { stroke-width: 2.5 }
COLOURS
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } text.dim { fill: #9198a1 } text.on { fill: #ffffff }
  .page { fill: #0d1117; stroke: #3d444d } .grid { stroke: #3d444d }
  DARK
}
"""


class Svg:
    """A page of `width` by `height` on which to draw."""

    def __init__(self, width, height, title, style=""):
        self.width, self.height, self.title = width, height, title
        self.parts = []
        self.style = STYLE.replace("COLOURS", colours(LIGHT)).replace("DARK", colours(DARK)) + style
        self.rect(0.5, 0.5, width - 1, height - 1, "page", 8)

    def rect(self, x, y, width, height, kind, radius=2):
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{max(width, 0):.1f}" height="{height:g}"'
            f' rx="{radius}" class="{kind}"/>'
        )

    def text(self, x, y, text, kind="", extra=""):
        kind = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{kind}{extra}>{escape(text)}</text>')

    def path(self, points, kind):
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{at}" class="{kind}"/>')

    def legend(self, x, y, names):
        """The names of the series, each behind its colour; returns where they end."""
        for name, colour in names:
            self.rect(x, y - 10, 11, 11, colour)
            self.text(x + 17, y, name)
            x += 34 + 7.2 * len(name)
        return x

    def __str__(self):
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
            f' width="{self.width}" height="{self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{self.style}</style>\n"
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def ceiling(value):
    """The smallest round number that is no less than `value`, for the end of an axis."""
    step = 10 ** (len(f"{int(value)}") - 1) if value >= 1 else 0.1
    for factor in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10):
        if step * factor >= value:
            return step * factor
    return value


def number(value):
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def bars(title, note, groups, unit):
    """Horizontal bars: `groups` is [(name, [(series, colour, value or None)])]."""
    left, right, row, gap = 275, 80, 17, 16
    count = sum(len(series) for _, series in groups)
    svg = Svg(760, 92 + count * row + len(groups) * gap, title)
    svg.text(20, 30, title, "title")
    names = {}
    for _, series in groups:
        names |= {name: colour for name, colour, _ in series}
    svg.legend(20, 56, names.items())
    most = max(value for _, series in groups for _, _, value in series if value)
    scale, y = (svg.width - left - right) / most, 76
    for name, series in groups:
        svg.text(left - 12, y + len(series) * row / 2 + 4, name, "end")
        for _, colour, value in series:
            svg.rect(left, y + 2, (value or 0) * scale, row - 4, colour)
            label = f"{value:.1f}{unit}" if value else "not measured"
            svg.text(left + (value or 0) * scale + 8, y + 13, label, "dim")
            y += row
        y += gap
    svg.text(20, svg.height - 12, note, "dim")
    return str(svg)


def lines(title, note, x_title, y_title, ticks, series):
    """Lines over positions that are named by `ticks`; series: [(name, colour, [y or None])]."""
    svg, (left, top, right, bottom) = Svg(760, 380, title), (70, 84, 30, 76)
    wide, high = svg.width - left - right, svg.height - top - bottom
    svg.text(20, 30, title, "title")
    svg.legend(20, 56, [(name, colour) for name, colour, _ in series])
    most = ceiling(max(y for _, _, values in series for y in values if y is not None))
    for i in range(6):
        y = top + high - i * high / 5
        svg.path([(left, y), (left + wide, y)], "grid")
        svg.text(left - 8, y + 4, number(most * i / 5) if i else "0", "dim end")
    svg.text(left - 8, top - 12, y_title, "dim")
    step = wide / max(len(ticks) - 1, 1)
    for i, tick in enumerate(ticks):
        if tick is not None:
            svg.text(left + i * step, top + high + 20, tick, "dim middle")
    svg.text(left + wide / 2, top + high + 42, x_title, "dim middle")
    for _, colour, values in series:
        points = [
            (left + i * step, top + high * (1 - y / most))
            for i, y in enumerate(values)
            if y is not None
        ]
        svg.path(points, f"line {colour}")
    svg.text(20, svg.height - 12, note, "dim")
    return str(svg)


def badge(name, value):
    """A small label: what, and which."""
    left, right = (16 + int(6.6 * len(text)) for text in (name, value))
    svg = Svg(left + right, 22, f"{name}: {value}")
    svg.rect(left, 1, right - 1, 20, "c1", 4)
    svg.text(8, 15, name, "small")
    svg.text(left + 8, 15, value, "small on")
    return str(svg)


def pairs(title, note, panels):
    """Panels side by side: [(name, unit, [(row, plain, packed)])], each with a scale of its own."""
    rows = max(len(rows) for _, _, rows in panels)
    svg = Svg(860, 110 + rows * 56, title)
    svg.text(24, 32, title, "title")
    svg.legend(svg.width - 262, 32, [("plain file", "c0"), ("bszfs", "c1")])
    panel = (svg.width - 24) / len(panels)
    for i, (name, unit, rows) in enumerate(panels):
        x, y = 24 + i * panel, 64
        svg.text(x, y, name)
        scale = (panel - 110) / max(max(plain, packed) for _, plain, packed in rows)
        for row, plain, packed in rows:
            svg.text(x, y + 22, row, "dim")
            for at, value, colour in ((28, plain, "c0"), (42, packed, "c1")):
                svg.rect(x, y + at, value * scale, 12, colour)
                svg.text(x + value * scale + 8, y + at + 10, f"{number(value)} {unit}", "dim")
            y += 56
    svg.text(24, svg.height - 14, note, "dim")
    return str(svg)


def terminal(title, session, width=92):
    """A recording that plays once, line by line: [(command, lines of output)]."""
    lines = []
    for command, output in session:
        first, *rest = command.splitlines()
        lines += [("$", first), *((">", line) for line in rest), *(("", line) for line in output)]
    delays, now = [], 0.4
    for kind, _ in lines:
        now += 0.9 if kind else 0.25
        delays.append(now)
    style = """
text.code { animation: appear 0.01s both }
@keyframes appear { from { opacity: 0 } to { opacity: 1 } }
@media (prefers-reduced-motion: reduce) { text.code { animation: none } }
text.prompt { fill: #1a7f37 }
@media (prefers-color-scheme: dark) { text.prompt { fill: #3fb950 } }
"""
    svg = Svg(24 + int(width * 7.9), 48 + 19 * len(lines), title, style)
    for i in range(3):
        svg.parts.append(f'<circle cx="{20 + 18 * i}" cy="18" r="5" class="c5"/>')
    y = 48
    for (kind, text), delay in zip(lines, delays):
        appear = f' style="animation-delay: {delay:.2f}s"'
        if kind:
            svg.text(16, y, kind, "code prompt", appear)
        svg.text(32 if kind else 16, y, text.expandtabs()[:width], "code", appear)
        y += 19
    return str(svg)
