#!/usr/bin/env python3
"""Measures the rows, interleaved, one JSON line per measurement. run.sh is the usual way in.

  bench.py --phase main|unpinned|memory [--rounds N] [--secs N] [--only CASE,...] [--minutes N] [ROW ...]

What is in the output file already is not measured again, so a run that was cut short goes on.
"""
import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

from loads import (CASES, NOT_AT_FLOOR, UNPINNED, WINDOWED, check, hold, let_go, served, wrk)
from material import BARE, GATE, MANY, RUN, UPSTREAM, WORK
from procs import (cpu, machine_busy, ours, pin, resident, start, start_upstreams, stop, switches)
from rows import DEFAULT, ROWS

BUSY, TRIES = 0.06, 2  # cores used by others above which a measurement is made again


class Bench:
    def __init__(self, args):
        self.args = args
        self.pinned = args.phase != "unpinned"
        self.proxy_cpus, self.load_cpus, self.threads = ({0}, {1}, 1) if self.pinned else (None, None, 2)
        self.end = time.time() + 60 * args.minutes
        self.patience = args.patience
        self.live, self.upstreams, self.agreed = {}, [], {}
        self.build = hashlib.sha256(open(GATE, "rb").read()).hexdigest()[:12]
        self.have = self._read()
        self.out = open(args.out, "a")

    def _read(self):
        if not os.path.exists(self.args.out):
            return set()
        lines = [json.loads(line) for line in open(self.args.out)]
        if any(m["build"] != self.build for m in lines):
            sys.exit(f"{self.args.out} is of another build of Tollgate; FRESH=1 begins anew")
        return {(m["phase"], m["row"], m["case"], m["round"]) for m in lines}

    def note(self, result):
        result["build"] = self.build
        self.out.write(json.dumps(result) + "\n")
        self.out.flush()

    def is_due(self, row, case, rnd):
        if time.time() > self.end or (self.args.phase, row, case, rnd) in self.have:
            return False
        return (ROWS[row].h2 or not case.startswith("h2")) and (ROWS[row].auth or case not in NOT_AT_FLOOR)

    # ---- one measurement

    def quiet(self):
        """Waits while something else keeps the machine busy; bounded for one and in all."""
        begin = time.time()
        while time.time() - begin < 25 and self.patience > 0:
            busy, at = machine_busy(), time.time()
            time.sleep(0.25)
            if (machine_busy() - busy) / (time.time() - at) < 0.13:
                return
            self.patience -= time.time() - at

    def calibrate(self):
        """CPU µs of a fixed piece of loopback work: how fast is the machine right now?"""
        done = subprocess.run([f"{WORK}/calib"], preexec_fn=pin({0}), capture_output=True, text=True)
        return float(done.stdout)

    def measure(self, row, case):
        process = self.live[row]
        port = UPSTREAM if ROWS[row].auth else BARE
        seen, windowed = {}, case in WINDOWED

        def snap():
            return cpu(process.pid), served(port)["ok"], time.time(), switches(process.pid)

        def load():
            try:
                seen.update(CASES[case](row, self.load_cpus, self.args.secs + 1, self.threads))
            except Exception as error:
                seen["failure"] = error
        self.quiet()
        speed = self.calibrate() if self.pinned else 0
        all_ours = [*self.upstreams, *self.live.values()]
        refused, busy, mine, begin = served(port)["bad"], machine_busy(), ours(all_ours), time.time()
        thread = threading.Thread(target=load)
        first = snap()
        thread.start()
        if windowed:
            time.sleep(0.9)
            first = snap()
            time.sleep(self.args.secs - 0.2)
            last = snap()
        thread.join()
        if not windowed:
            last = snap()
        if "failure" in seen:
            raise seen["failure"]
        others = (machine_busy() - busy - (ours(all_ours) - mine)) / (time.time() - begin)
        count = max(last[1] - first[1] if windowed else seen["n"], 1)
        user, system = last[0][0] - first[0][0], last[0][1] - first[0][1]
        seconds = last[2] - first[2]
        if case == "resumed" and seen["resumed"] < 0.9 * seen["n"]:
            print(f"  {row} resumed only {seen['resumed']} of {seen['n']}", flush=True)
        wrong = (0 if case == "deny" else seen["wrong"]) + seen["errors"] + served(port)["bad"] - refused
        return {**{key: seen[key] for key in ("p50", "p99", "p999") if key in seen},
                "cpu_us": (user + system) / count * 1e6, "user_us": user / count * 1e6, "sys_us": system / count * 1e6,
                "n": count, "rps": count / seconds, "util": (user + system) / seconds, "wrong": wrong,
                "switches": (last[3] - first[3]) / count, "others": round(others, 3), "calib": speed}

    def best_of_tries(self, row, case, rnd):
        for _ in range(TRIES):
            try:
                result = self.measure(row, case)
            except Exception as error:
                print(f"  FAILED {row} {case}: {str(error)[-400:]}", flush=True)
                continue
            if result["others"] < BUSY or self.patience <= 0:
                break
        else:
            if "result" not in locals():
                return
        result.update(phase=self.args.phase, row=row, case=case, round=rnd, **self.agreed.get(row, {}))
        self.note(result)
        latency = f" p99 {result['p99']:.0f} µs" if "p99" in result else ""
        print(f"  {row:15} {case:8} {result['cpu_us']:8.1f} µs/request (user {result['user_us']:.1f})"
              f" {result['rps']:8.0f}/s core {result['util']:.2f} others {result['others']:.2f}{latency}"
              + (f"  WRONG ANSWERS {result['wrong']}" if result["wrong"] else ""), flush=True)

    # ---- phases

    def bring_up(self, rows, n):
        for row in rows:
            try:
                self.live[row] = start(row, self.threads, self.proxy_cpus, n)
                self.agreed[row] = check(row)
                wrk(row, self.load_cpus, 64, 1)
            except Exception as error:
                print(f"FAILED to start {row}: {error!r}", flush=True)
                if row in self.live:
                    stop(self.live.pop(row))

    def bring_down(self):
        for process in self.live.values():
            stop(process)
        self.live.clear()

    def loads(self, rows):
        cases = list(CASES) if self.pinned else UNPINNED
        if self.args.only:
            cases = [case for case in cases if case in self.args.only.split(",")]
        for n in (1, MANY):
            some = [case for case in cases if (case == "h1_10k") == (n == MANY)]
            rounds = range(self.args.rounds)
            if not any(self.is_due(row, case, rnd) for row in rows for case in some for rnd in rounds):
                continue
            self.bring_up([row for row in rows if any(self.is_due(row, c, r) for c in some for r in rounds)], n)
            names = list(self.live)
            for rnd in rounds:
                for case in some:
                    print(f"-- {self.args.phase}, round {rnd + 1} of {len(rounds)}, {case}", flush=True)
                    for i in range(len(names)):
                        row = names[(i + rnd * 3) % len(names)]
                        if self.is_due(row, case, rnd):
                            self.best_of_tries(row, case, rnd)
            self.bring_down()

    def memory(self, rows):
        for row in rows:
            if not self.is_due(row, "memory", 0):
                continue
            print(f"-- memory, {row}", flush=True)
            try:
                process = self.live[row] = start(row, 1, {0}, 1)
                result = {"phase": "memory", "row": row, "case": "memory", "round": 0, "idle": resident(process.pid)}
                check(row)
                result["before"] = resident(process.pid)
                for count in (1000, 10000):
                    client, said = hold(row, {1}, count)
                    time.sleep(2)
                    result[f"at_{count}"], result[f"held_{count}"] = resident(process.pid), said
                    let_go(client)
                    result[f"after_{count}"] = resident(process.pid)
                wrk(row, {1}, 256, 3)
                result["after_load"] = resident(process.pid)
                self.note(result)
                print(f"  {result}", flush=True)
            except Exception as error:
                print(f"  FAILED {row}: {error!r}", flush=True)
            self.bring_down()

    def run(self):
        rows = self.args.rows or DEFAULT
        if self.args.phase == "memory":
            rows = [row for row in rows if not row.endswith("-log") and row not in ("tollgate-quiet", "tollgate-bare")]
        self.upstreams = start_upstreams(self.load_cpus)
        try:
            self.memory(rows) if self.args.phase == "memory" else self.loads(rows)
        finally:
            self.bring_down()
            for process in self.upstreams:
                stop(process)
        if time.time() > self.end:
            print("out of time; the same command goes on from here", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--phase", choices=("main", "unpinned", "memory"), default="main")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=int, default=1)
    parser.add_argument("--only", help="cases, comma separated")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for a quiet machine, in all")
    parser.add_argument("--out", default=f"{RUN}/results.jsonl")
    parser.add_argument("rows", nargs="*")
    args = parser.parse_args()
    if strange := [row for row in args.rows if row not in ROWS]:
        sys.exit(f"no row {strange[0]}; there are: {' '.join(ROWS)}")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: sys.exit(1))  # so that the rows are stopped too
    if args.phase != "unpinned":
        os.sched_setaffinity(0, {1})
    Bench(args).run()


if __name__ == "__main__":
    main()
