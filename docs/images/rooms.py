#!/usr/bin/env python3
"""Draw the rooms of src/ and their imports as docs/images/rooms.svg. With --check, fail if the
drawing is stale. Only arrows that do not follow from others are drawn."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_suffix(".svg")
LEAVES = {"error", "escape", "input", "log_once", "program"}  # used nearly everywhere
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 132, 50, 26, 50, 50
NOTES = {
    "cli": "arguments, output", "mount": "the file system", "readahead": "what is read next",
    "cache": "decoded chunks", "gpu": "chunks on a GPU", "read": "archives to bytes",
    "remote": "other machines",
    "pack": "files to archives", "format": "bytes on disk", "codec": "one chunk",
    "sha256": "hash of a file", "output": "complete files",
}


def imports(room):
    """The rooms that a room's files name as crate::x or crate::{x, y::z}."""
    path = ROOT / "src" / room
    files = path.rglob("*.rs") if path.is_dir() else [path.with_suffix(".rs")]
    used = set()
    for file in files:
        text = re.sub(r"//.*", "", file.read_text())
        used.update(re.findall(r"\bcrate::([a-z_0-9]+)", text))
        for group in re.findall(r"\bcrate::\{(.*?)\};", text, re.S):
            depth, start = 0, True
            for token in re.findall(r"[a-z_0-9A-Z]+|[{},]", group):
                if token == "{":
                    depth += 1
                elif token == "}":
                    depth -= 1
                elif token == "," and depth == 0:
                    start = True
                elif start and depth == 0:
                    used.add(token)
                    start = False
    return used


def drawing():
    names = {p.stem for p in (ROOT / "src").iterdir()} - {"lib", "main"} - LEAVES
    uses = {room: (imports(room) & names) - {room} for room in names}

    def reach(room):
        return uses[room].union(*(reach(other) for other in uses[room]), set())

    arrows = {r: {u for u in uses[r] if not any(u in reach(o) for o in uses[r] - {u})} for r in uses}
    level = {}

    def depth(room):
        if room not in level:
            level[room] = 1 + max((depth(other) for other in uses[room]), default=-1)
        return level[room]

    rows = {}
    for room in sorted(names, key=lambda room: (depth(room), room)):
        rows.setdefault(level[room], []).append(room)
    span = max(map(len, rows.values())) * (WIDTH + GAP_X) + GAP_X + 2 * MARGIN
    tall = (max(rows) + 1) * (HEIGHT + GAP_Y) + 30
    place = {}
    for row, rooms in rows.items():
        left = (span - len(rooms) * (WIDTH + GAP_X) + GAP_X) / 2
        for i, room in enumerate(rooms):
            place[room] = (left + i * (WIDTH + GAP_X), (max(rows) - row) * (HEIGHT + GAP_Y) + 10)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {span:.0f} {tall:.0f}" '
        'font-family="sans-serif" text-anchor="middle">',
        "<title>The rooms of bszfs and what they import</title>",
        "<style>rect{fill:#fff;stroke:#57606a}text{fill:#1f2328}path{fill:none;stroke:#57606a}"
        "@media(prefers-color-scheme:dark){rect{fill:#161b22;stroke:#8b949e}text{fill:#e6edf3}"
        "path{stroke:#8b949e}}</style>",
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0L8,4L0,8" /></marker></defs>',
    ]
    for room in sorted(names):
        x, y = place[room]
        for i, other in enumerate(sorted(arrows[room])):
            u, v = place[other]
            if level[room] - level[other] > 1:  # around the boxes between
                svg.append(
                    f'<path marker-end="url(#a)" d="M{x:.0f},{y + HEIGHT / 2:.0f}'
                    f"C{MARGIN / 2 - 60:.0f},{y + HEIGHT:.0f} {MARGIN / 2 - 30:.0f},"
                    f'{v:.0f} {u:.0f},{v + HEIGHT / 2:.0f}" />'
                )
                continue
            svg.append(
                f'<path marker-end="url(#a)" d="M{x + WIDTH / 2:.0f},{y + HEIGHT:.0f}'
                f"C{x + WIDTH / 2:.0f},{y + HEIGHT + 30:.0f} {u + WIDTH / 2:.0f},{v - 30:.0f} "
                f'{u + WIDTH / 2:.0f},{v:.0f}" />'
            )
    for room in sorted(names):
        x, y = place[room]
        svg += [
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6" />',
            f'<text x="{x + WIDTH / 2:.0f}" y="{y + 21:.0f}" font-size="15" font-weight="bold">'
            f"{room}</text>",
            f'<text x="{x + WIDTH / 2:.0f}" y="{y + 39:.0f}" font-size="12">'
            f"{NOTES.get(room, '')}</text>",
        ]
    svg.append(
        f'<text x="{span / 2:.0f}" y="{tall - 8:.0f}" font-size="12">below all of them: '
        f"{', '.join(sorted(LEAVES))}</text></svg>"
    )
    return "\n".join(svg) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if OUT.read_text() != drawing():
            sys.exit(f"{OUT.name} is stale: run docs/images/rooms.py")
    else:
        OUT.write_text(drawing())
