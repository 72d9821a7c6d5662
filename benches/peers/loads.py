"""The loads: each drives one row and says how many requests it saw answered."""
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import time

from material import BIN, HERE, MANY, RUN, UPSTREAM, token
from procs import pin
from rows import PORTS, ROWS

GET, BIG, MESSAGE, MEDIA = "/v1/groups", "/v1/media/17", "/v1/messages", "/v1/media"

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE

def check(row):
    """The job is done: 200 with the token, 401 without. Says what TLS was agreed."""
    def status(bearer):
        raw = socket.create_connection(("127.0.0.1", PORTS[row]), 5)
        stream = TLS.wrap_socket(raw, server_hostname="app.example.test")
        agreed = {"tls": stream.version(), "cipher": stream.cipher()[0]}
        stream.sendall(f"GET {GET} HTTP/1.1\r\nHost: app.example.test\r\nAuthorization: Bearer {bearer}\r\n"
                       "X-Forwarded-For: 6.6.6.6\r\n\r\n".encode())
        answer = stream.recv(65536)
        stream.close()
        return int(answer.split()[1]), agreed
    good, agreed = status(token(0))
    if good != 200:
        raise RuntimeError(f"{good} instead of 200")
    if ROWS[row].auth and status("tok_" + "0" * 40)[0] != 401:
        raise RuntimeError("no 401 for a wrong token")
    return agreed


# ---- tools

def _headers(bearer):
    return ["-H", f"Authorization: Bearer {bearer}", "-H", "User-Agent: pb/1", "-H", "Accept: application/json",
            "-H", "Accept-Encoding: gzip, br", "-H", "X-Request-Id: 0123456789abcdef0123456789abcdef"]


def _run(cpus, command, env=None):
    done = subprocess.run(command, preexec_fn=pin(cpus), capture_output=True, text=True, timeout=180,
                          env={**os.environ, **(env or {})})
    return done.stdout + done.stderr


def wrk(row, cpus, connections, seconds, path=GET, bearer=None, script=None, env=None, threads=1):
    command = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{seconds}s", *_headers(bearer or token(0))]
    if script:
        command += ["-s", f"{HERE}/lua/{script}"]
    out = _run(cpus, command + [f"https://127.0.0.1:{PORTS[row]}{path}"], env)
    total = re.search(r"(\d+) requests in", out)
    if not total:
        raise RuntimeError(out[-600:])
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    return {"n": int(total[1]), "wrong": int(wrong[1]) if wrong else 0,
            "errors": sum(map(int, errors.groups())) if errors else 0}


def h2load(row, cpus, seconds, path=GET, extra=(), threads=1):
    out = _run(cpus, ["h2load", "-D", str(seconds), "-c", "16", "-m", "10", "-t", str(threads), *extra,
                      *_headers(token(0)), f"https://127.0.0.1:{PORTS[row]}{path}"])
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", out)
    failed = re.search(r"(\d+) failed, (\d+) errored", out)
    if not codes or "Application protocol: h2" not in out:
        raise RuntimeError(out[-600:])
    return {"n": int(codes[1]), "wrong": sum(int(codes[i]) for i in (2, 3, 4)), "errors": int(failed[2])}


def pb_load(row, cpus, *words):
    out = _run(cpus, [f"{BIN}/release/pb-load", *map(str, words), "--target", f"127.0.0.1:{PORTS[row]}",
                      "--token", token(0)])
    answer = json.loads(out.strip().splitlines()[-1])
    return {**answer, "wrong": answer.get("non200", 0) + answer.get("bad", 0), "errors": answer.get("err", 0)}


def post(size):
    return {"script": "post.lua", "env": {"PB_BODY": str(size)}}


WINDOWS = ("-w", "20", "-W", "24")
CASES = {
    "h1_64": lambda row, cpus, secs, t: wrk(row, cpus, 64, secs, threads=t),
    "h1_256": lambda row, cpus, secs, t: wrk(row, cpus, 256, secs, threads=t),
    "post1k": lambda row, cpus, secs, t: wrk(row, cpus, 64, secs, MESSAGE, threads=t, **post(1024)),
    "get64k": lambda row, cpus, secs, t: wrk(row, cpus, 64, secs, BIG, threads=t),
    "post64k": lambda row, cpus, secs, t: wrk(row, cpus, 64, secs, MEDIA, threads=t, **post(65536)),
    "deny": lambda row, cpus, secs, t: wrk(row, cpus, 64, secs, bearer="tok_" + "0" * 40, threads=t),
    "h2": lambda row, cpus, secs, t: h2load(row, cpus, secs, threads=t),
    "h2_64k": lambda row, cpus, secs, t: h2load(row, cpus, secs, BIG, WINDOWS, threads=t),
    "full": lambda row, cpus, secs, t: pb_load(row, cpus, "churn", "--n", 1500 * secs, "--c", 16, "--resume", 0),
    "resumed": lambda row, cpus, secs, t: pb_load(row, cpus, "churn", "--n", 1500 * secs, "--c", 16, "--resume", 1),
    "rate": lambda row, cpus, secs, t: pb_load(row, cpus, "rate", "--rps", 2500, "--c", 64, "--secs", secs),
    "h1_10k": lambda row, cpus, secs, t: wrk(row, cpus, 64, secs, script="rot.lua", env={"PB_TOKENS": f"{RUN}/tokens-{MANY}.txt"}),
}
UNPINNED = ["h1_64", "h1_256", "h2", "deny"]
NOT_AT_FLOOR = ("deny", "h1_10k")
# counted by the upstream over a window in mid-run; the others over the whole run
WINDOWED = ("h1_64", "h1_256", "h1_10k", "get64k", "post1k", "post64k", "h2", "h2_64k", "rate")


def served(port=UPSTREAM):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/stats")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def hold(row, cpus, count):
    """Opens `count` connections, one request each, and holds them until standard input closes."""
    process = subprocess.Popen([f"{BIN}/release/pb-load", "idle", "--n", str(count), "--target",
                                f"127.0.0.1:{PORTS[row]}", "--token", token(0)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=pin(cpus))
    return process, process.stdout.readline().strip()


def let_go(process):
    process.stdin.close()
    process.wait()
    time.sleep(1.5)
