"""What is measured: how each row is started."""
from material import BIN, CERT, GATE, KEY, RUN, UPSTREAM, UPTOKEN, WORK, token, write


def nginx(place):
    return ["nginx", "-c", place.config("nginx.conf"), "-e", f"{place.folder}/error.log"], {}


def haproxy(place):
    return ["haproxy", "-q", "-db", "-f", place.config("haproxy.cfg")], {}


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


def tollgate(place):
    for name in ("webapp-password", "gate-password"):
        write(f"{place.folder}/{name}", "Bench-Passw0rd!", 0o600)
    return [GATE, "serve", "--config", place.config("tollgate.toml")], {}


class Row:
    """`auth`: does the whole job. `h2`: speaks HTTP/2. `logs`: writes an access log. `mints`: its
    tokens are its own, so the bench logs in for them."""

    def __init__(self, command, auth=True, h2=True, logs=False, mints=False):
        self.command, self.auth, self.h2, self.logs, self.mints = command, auth, h2, logs, mints


PEERS = {"nginx": nginx, "haproxy": haproxy, "envoy": envoy, "caddy": caddy, "pingora": pingora}
ROWS = {
    "tollgate": Row(tollgate, logs=True, mints=True),
    "tollgate-quiet": Row(tollgate, mints=True),
    **{name: Row(command) for name, command in PEERS.items()},
    **{f"{name}-log": Row(command, logs=True) for name, command in PEERS.items()},
    "tls-floor": Row(floor, auth=False, h2=False),
}
DEFAULT = [row for row in ROWS if row != "tollgate-quiet"]
PORTS = {row: 8400 + i for i, row in enumerate(ROWS)}
