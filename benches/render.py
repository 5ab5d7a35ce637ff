"""Turn the figures of one run, docs/benchmarks.json, into tables, charts and pages."""

import json
import pathlib
import re
import sys
import tomllib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import charts  # noqa: E402  beside this file

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs/benchmarks.json"
PAGES = ROOT / "README.md", ROOT / "docs/BENCHMARKS.md"
IMAGES = ROOT / "docs/images"
NOT = "not measured"
TOOLS = {"bsz": "c1", "lmz": "c2", "BigSmall": "c3", "ZipNN": "c4", "zstd": "c0"}


class Figures:
    """What one run measured, by the name of each step; a failed step was not measured."""

    def __init__(self, run):
        self.run, self.machine = run, run["machine"]
        self.results = {name: r for name, r in run["results"].items() if "error" not in r}

    def __getitem__(self, name):
        return self.results.get(name)

    def below(self, prefix):
        """[(rest of the name, result)] of the steps whose names begin so, in their order."""
        return [
            (n.removeprefix(prefix), r) for n, r in self.results.items() if n.startswith(prefix)
        ]

    def source(self):
        """The line below every chart."""
        m = self.machine
        return f"{m['cores']} cores of {m['cpu']}, {m['date']}, bszfs {m['commit']}"


def table(head, rows):
    align = "|" + "---|" * len(head)
    return "\n".join(
        ["| " + " | ".join(head) + " |", align, *("| " + " | ".join(row) + " |" for row in rows)]
    )


def percent(part, whole):
    return f"{100 * part / whole:.2f}"


def megabytes(n):
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def rate(mbs):
    return "not throttled" if mbs is None else f"{mbs} MB/s"


# Tables. Each returns Markdown, or None where the run has nothing for it.


def machine(f):
    m, peers = f.machine, f.run["peers"]
    versions = ", ".join(f"{name} {version or NOT}" for name, version in peers.items())
    return "\n".join(
        [
            f"- **Machine**: {m['cores']} cores of {m['cpu']} ({m['simd']}),"
            f"\n  {m['memory_gib']:.0f} GiB of memory, Linux {m['kernel']}, {m['file_system']}",
            f"- **bszfs**: {m['version']}, commit {m['commit']}",
            f"- **References**: {versions};\n  Python {m['python']},"
            f" safetensors {m['safetensors']}",
            f"- **Run**: {m['date']}, best of {f.run['runs']} runs; load average at the start"
            f" {m['load']:.2f}",
        ]
    )


def sizes(f, tools=TOOLS):
    found = f.below("sizes/")
    tools = [t for t in tools if t == "bsz" or any(t in r["tools"] for _, r in found)]

    def cell(r, tool):
        t = r["tools"].get(tool, {"error": NOT})
        return "" if "error" in t else percent(t["bytes"], r["bytes"])

    rows = [
        [f"{r['title']}, {megabytes(r['bytes'])}", *(cell(r, t) for t in tools)] for _, r in found
    ]
    return table(["% of the file", *tools], rows) if rows else None


def commands(f):
    r = f["commands"]
    if not r:
        return None
    rows = []
    for tool, t in r["tools"].items():
        cells = (
            [f"{r['bytes'] / 1e6 / s:.0f}" for s in t["seconds"]] if "error" not in t else [NOT] * 3
        )
        rows.append(
            [tool, *cells, ("yes" if t["identical"] else "tensors") if "error" not in t else ""]
        )
    text = table(
        [
            f"MB/s of {r['title']}, {megabytes(r['bytes'])}",
            "pack",
            "unpack",
            "verify",
            "file identical",
        ],
        rows,
    )
    return text + f"\n\n`bsz pack` needed {r['pack_mib']:.0f} MiB of memory at its peak."


def decode(f):
    found = f.below("decode/")
    if not found:
        return None
    kinds = list(dict.fromkeys((d["name"], d["threads"]) for _, r in found for d in r["decoders"]))

    def head(name, threads):
        return f"{name}, {threads} thread{'s' if threads > 1 else ''}"

    rows = []
    for _, r in found:
        by = {(d["name"], d["threads"]): d["gbs"] for d in r["decoders"]}
        copies = {c["threads"]: c["gbs"] for c in r["memcpy"]}
        rows.append(
            [
                r["title"],
                *(f"{by[k]:.2f}" if k in by else "" for k in kinds),
                f"{copies[1]:.1f}",
                f"{r['verify_gbs']:.2f}",
            ]
        )
    return table(["GB/s", *(head(*k) for k in kinds), "memcpy, 1 thread", "`bsz verify`"], rows)


def reads(f):
    r = f["reads"]
    if not r:
        return None
    by = {(name, system, heat): value for name, system, heat, value in r["rates"]}
    systems = list(dict.fromkeys(system for _, system, _ in by))
    names = list(dict.fromkeys(name for name, _, _ in by))
    tables = []
    for heat, what in (("cold", "Cold"), ("warm", "A second pass")):
        rows = []
        for name in names:
            if (name, systems[0], heat) in by:
                digits = 1 if name.startswith("random") else 2
                unit = ", thousands a second" if name.startswith("random") else ""
                rows.append(
                    [
                        name + unit,
                        *(
                            f"{by[name, s, heat]:.{digits}f}" if (name, s, heat) in by else NOT
                            for s in systems
                        ),
                    ]
                )
        tables.append(table([f"{what}, GB/s", *systems], rows))
    return "\n\n".join([f"{r['title']}, {megabytes(r['bytes'])}:", *tables])


def loads(f):
    found = [r for _, r in f.below("loads/")]
    if not found:
        return None
    rows = []
    for r in found:
        plain, mounted = r["plain"], r["bsz"]
        rows.append(
            [
                rate(r["mbs"]),
                f"{plain['cold']:.2f} s",
                f"{mounted['cold']:.2f} s",
                f"{plain['cold'] / mounted['cold']:.2f}",
                f"{plain['warm']:.2f} s",
                f"{mounted['warm']:.2f} s",
            ]
        )
    head = ["disk", "plain, cold", "mounted, cold", "speed-up", "plain, again", "mounted, again"]
    return table(head, rows)


def layers(f):
    found = f.below("layers/")
    if not found:
        return None
    rows = []
    for _, r in found:
        total = {system: 1e3 * sum(times) for system, times in r["waits"].items()}
        less = 100 * (1 - total["auto"] / total["prefetch off"])
        rows.append(
            [
                r["title"],
                *(f"{total[s]:.0f}" for s in ("plain", "prefetch off", "auto")),
                f"{less:.0f} %",
            ]
        )
    disk = {rate(r["mbs"]) for _, r in found}
    head = [
        f"ms in all, disk {', '.join(sorted(disk))}",
        "plain file",
        "`--prefetch off`",
        "`--prefetch auto`",
        "less by",
    ]
    return table(head, rows)


def memory(f):
    r = f["memory"]
    if not r:
        return None
    return (
        f"After a cold read of {r['title']} ({megabytes(r['bytes'])}) in blocks of 16 MiB,\n"
        f"the daemon has {r['daemon']:.0f} MiB of its own, and the page cache holds\n"
        f"{r['view']:.0f} MiB of the view and {r['archive']:.0f} MiB of the archive.\n"
        f"A mount is ready {1e3 * r['ready']:.0f} ms after the command starts."
    )


# Charts, likewise.


def overview(f):
    found, small = [r for _, r in f.below("loads/")], ("minilm-f32", "whisper-f16", "llama-bf16")
    disk = [
        (r["title"].replace(", seeded", ""), r["bytes"] / 1e6, r["tools"]["bsz"]["bytes"] / 1e6)
        for name, r in f.below("sizes/")
        if name in small or name.startswith("tiny")
    ]
    if not disk or not found:
        return None
    cold = [(f"disk {rate(r['mbs'])}", r["plain"]["cold"], r["bsz"]["cold"]) for r in pick(found)]
    title = found[0]["title"]
    return charts.pairs(
        "Disk use and cold load",
        f"Load: safetensors, {title}. {f.source()}",
        [("On disk", "MB", disk), (f"Cold load, {megabytes(found[0]['bytes'])}", "s", cold)],
    )


def pick(found):
    """Three of the loads: a slow disk, a middling one, and the disk as it is."""
    return [r for r in found if r["mbs"] in (200, 400, None)] or found[:3]


def sizes_chart(f):
    found = f.below("sizes/")
    groups = []
    for _, r in found:
        series = [
            (t, colour, 100 * r["tools"][t]["bytes"] / r["bytes"])
            for t, colour in TOOLS.items()
            if "error" not in r["tools"].get(t, {"error": NOT})
        ]
        groups.append((r["title"], series))
    return (
        charts.bars("Size of the archive, % of the file", f.source(), groups, " %")
        if groups
        else None
    )


def loads_chart(f):
    found = [r for _, r in f.below("loads/")]
    if len(found) < 2:
        return None
    ticks = ["as it is" if r["mbs"] is None else str(r["mbs"]) for r in found]
    gbs = [
        (name, colour, [r["bytes"] / 1e9 / r[key]["cold"] if key in r else None for r in found])
        for name, colour, key in (("plain file", "c0", "plain"), ("bszfs", "c1", "bsz"))
    ]
    return charts.lines(
        "Cold load with safetensors", f.source(), "the disk's rate, MB/s", "GB/s", ticks, gbs
    )


def layers_chart(f):
    found = f.below("layers/")
    if not found:
        return None
    _, r = found[min(1, len(found) - 1)]
    count = len(r["waits"]["auto"])
    ticks = [str(i) if i % 8 == 0 else None for i in range(count)]
    series = [
        (name, colour, [1e3 * t for t in r["waits"][key]])
        for name, colour, key in (
            ("plain file", "c0", "plain"),
            ("--prefetch off", "c2", "prefetch off"),
            ("auto", "c1", "auto"),
        )
    ]
    title = f"Waiting for each layer: {r['title']}, disk {rate(r['mbs'])}"
    return charts.lines(title, f.source(), "layer", "ms", ticks, series)


def session(f):
    r = f["session"]
    return (
        charts.terminal(
            "bszfs: pack, mount, load", [(s["command"], s["output"]) for s in r["steps"]]
        )
        if r
        else None
    )


def badges():
    """Of what the manifest says."""
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    return {
        "licence": charts.badge("licence", package["license"]),
        "rust": charts.badge("Rust", f"{package['rust-version']}+"),
        "platform": charts.badge("platform", "Linux, FUSE 3"),
    }


TABLES = {
    "machine": machine,
    "sizes": sizes,
    "commands": commands,
    "decode": decode,
    "reads": reads,
    "loads": loads,
    "layers": layers,
    "memory": memory,
    "source": lambda f: f"<sub>{f.source()}.</sub>",
}
CHARTS = {
    "overview": overview,
    "sizes": sizes_chart,
    "loads": loads_chart,
    "layers": layers_chart,
    "session": session,
}
BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- /bench -->)", re.S)


def rendered(run):
    """{path: text} of the pages with their tables, and of the charts."""
    f, texts = Figures(run), {}
    for page in PAGES:
        texts[page] = BLOCK.sub(
            lambda m: m[1] + (TABLES[m[2]](f) or "Not measured in this run.") + "\n" + m[3],
            page.read_text(),
        )
    texts |= {IMAGES / f"badge-{name}.svg": badge for name, badge in badges().items()}
    for name, chart in CHARTS.items():
        if text := chart(f):
            texts[IMAGES / f"{name}.svg"] = text
    return texts


def stale(run):
    """The paths that are not what the figures say."""
    return [
        path
        for path, text in rendered(run).items()
        if not path.exists() or path.read_text() != text
    ]


def write(run):
    IMAGES.mkdir(exist_ok=True)
    for path, text in rendered(run).items():
        path.write_text(text)


def load():
    return json.loads(FIGURES.read_text())
