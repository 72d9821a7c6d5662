"""What is measured: how each row is started."""
import hashlib
import json
import shutil
import subprocess
import time

from material import BIN, CERT, GATE, KEY, RUN, UPSTREAM, UPTOKEN, WORK, token, write

# a hash that no password has: these users never log in
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$YmVuY2gtbm9ib2R5$" + "A" * 43


def nginx(place):
    return ["nginx", "-c", place.config("nginx.conf"), "-e", f"{place.folder}/error.log"], {}


def haproxy(place):
    # quiet would close the standard output that its log goes to
    quiet = [] if place.logs else ["-q"]
    return ["haproxy", *quiet, "-db", "-f", place.config("haproxy.cfg")], {}


def envoy(place):
    keys = "".join(f'              - {{ client: c{i}, key: "{token(i)}" }}\n' for i in range(place.n))
    config = place.config("envoy.yaml.head", "envoy.yaml.tail", middle=keys)
    return [f"{WORK}/venv/lib/envoy", "-c", config, "--concurrency", str(place.threads),
            "-l", "error", "--disable-hot-restart"], {}


def caddy(place):
    tokens = "".join(f'\t\t"Bearer {token(i)}" c{i}\n' for i in range(place.n))
    config = place.config("Caddyfile.head", "Caddyfile.tail", middle=tokens)
    return ([f"{WORK}/venv/bin/caddy", "run", "--adapter", "caddyfile", "--config", config],
            {"GOMAXPROCS": str(place.threads), "HOME": place.folder, "XDG_DATA_HOME": place.folder})


def _addresses(place, upstream):
    return ["--listen", f"127.0.0.1:{place.port}", "--upstream", f"127.0.0.1:{upstream}",
            "--cert", CERT, "--key", KEY, "--threads", str(place.threads)]


def pingora(place):
    log = ["--access-log", "/dev/null"] if place.logs else []
    return [f"{BIN}/peer/pingora-peer", *_addresses(place, UPSTREAM), "--tokens", f"{RUN}/tokens-{place.n}.txt",
            "--upstream-token", UPTOKEN, *log], {}


def floor(place):
    return [f"{BIN}/release/tls-floor", *_addresses(place, 9001)], {}


def prepared(place, config):
    for name in ("webapp-password", "gate-password"):
        write(f"{place.folder}/{name}", "Bench-Passw0rd!", 0o600)
    shutil.rmtree(f"{place.folder}/data", ignore_errors=True)
    return place.config(config)


def bare(place):
    return [GATE, "serve", "--config", prepared(place, "tollgate-bare.toml")], {}


def tollgate(place):
    """The bench's tokens go into its store as an operator would put them there, each with a user."""
    config = prepared(place, "tollgate.toml")
    records, ends = [], int((time.time() + 30 * 86400) * 1000)
    for i in range(place.n):
        user, digest = f"client-{i:05}", hashlib.sha256(token(i).encode()).hexdigest()
        records.append({"kind": "user", "name": user, "role": "ROLE_USER", "hash": NOBODY, "must_change": False,
                        "is_first_admin": False})
        records.append({"kind": "grant", "digest": digest, "user": user, "role": "ROLE_USER", "ends_millis": ends,
                        "epoch": 0, "origin": "minted"})
    lines = [{"kind": "export", "layout": 1}, *records, {"kind": "end", "records": len(records)}]
    subprocess.run([GATE, "store", "import", "--config", config], check=True, text=True, stdout=subprocess.DEVNULL,
                   input="".join(json.dumps(line) + "\n" for line in lines))
    return [GATE, "serve", "--config", config], {}


class Row:
    """`auth`: does the whole job. `h2`: speaks HTTP/2. `logs`: writes an access log."""

    def __init__(self, command, auth=True, h2=True, logs=False):
        self.command, self.auth, self.h2, self.logs = command, auth, h2, logs


PEERS = {"nginx": nginx, "haproxy": haproxy, "envoy": envoy, "caddy": caddy, "pingora": pingora}
ROWS = {
    "tollgate": Row(tollgate, logs=True),
    "tollgate-quiet": Row(tollgate),
    "tollgate-bare": Row(bare, auth=False),
    **{name: Row(command) for name, command in PEERS.items()},
    **{f"{name}-log": Row(command, logs=True) for name, command in PEERS.items()},
    "tls-floor": Row(floor, auth=False, h2=False),
}
DEFAULT = [row for row in ROWS if row != "tollgate-quiet"]
PORTS = {row: 8400 + i for i, row in enumerate(ROWS)}
