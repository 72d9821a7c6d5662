"""Tokens, certificate and configuration files of one run, under PB_WORK."""
import hashlib
import os
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.environ.get("PB_WORK", "/tmp/peerbench")
RUN = os.path.join(WORK, "run")
BIN = os.path.join(WORK, "target")
GATE = os.environ.get("PB_GATE", f"{BIN}/dist/tollgate")
UPTOKEN = "up_9f2c1d7b6a5e4c3f8b7a"
UPSTREAM, BARE = 9000, 9001  # the one that checks the proxy's work, the one behind the floor
MANY = 10000
os.makedirs(RUN, exist_ok=True)


def token(i):
    return "tok_" + hashlib.sha256(b"client-%d" % i).hexdigest()[:40]


def _certificate():
    cert, key, both = (f"{RUN}/{name}" for name in ("cert.pem", "key.pem", "certkey.pem"))
    if not os.path.exists(both):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", key, "-out", cert, "-days", "365", "-subj", "/CN=app.example.test",
             "-addext", "subjectAltName=DNS:app.example.test,DNS:localhost,IP:127.0.0.1"],
            check=True, capture_output=True)
        with open(both, "w") as out:
            out.write(open(cert).read() + open(key).read())
        for file in (key, both):
            os.chmod(file, 0o640)
    return cert, key, both


def write(path, text, mode=0o644):
    with open(path, "w") as out:
        out.write(text)
    os.chmod(path, mode)
    return path


def _token_files():
    for n in (1, MANY):
        tokens = [token(i) for i in range(n)]
        write(f"{RUN}/tokens-{n}.txt", "".join(t + "\n" for t in tokens))
        write(f"{RUN}/tokens-{n}.nginx", "".join(f'"Bearer {t}" c{i};\n' for i, t in enumerate(tokens)))
        # map files end a key at the first blank, so these keys are the tokens; see haproxy.cfg
        write(f"{RUN}/tokens-{n}.haproxy", "".join(f"{t} c{i}\n" for i, t in enumerate(tokens)))


CERT, KEY, BOTH = _certificate()
_token_files()


class Place:
    """Where one row runs and with what: its name, port, threads, number of tokens, log or none."""

    def __init__(self, row, port, threads, n, logs):
        self.row, self.port, self.threads, self.n, self.logs = row, port, threads, n, logs
        self.folder = f"{RUN}/{row}"
        os.makedirs(self.folder, exist_ok=True)

    def fill(self, text):
        words = {
            "THREADS": self.threads, "FOLDER": self.folder, "CERT": CERT, "KEY": KEY, "CERTKEY": BOTH,
            "UPTOKEN": UPTOKEN, "PORT": self.port, "OPERATOR": self.port + 500, "UPSTREAM": UPSTREAM, "BARE": BARE,
            "TOKENS_NGINX": f"{RUN}/tokens-{self.n}.nginx", "TOKENS_HAPROXY": f"{RUN}/tokens-{self.n}.haproxy",
        }
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        # a line that begins with #log is on where the row writes an access log, #quiet where not
        on, off = ("#log ", "#quiet ") if self.logs else ("#quiet ", "#log ")
        lines = [line.replace(on, "", 1) for line in text.splitlines() if not line.lstrip().startswith(off)]
        return "\n".join(lines) + "\n"

    def config(self, *names, middle="", suffix=""):
        """One file of the named parts in configs/, `middle` between them."""
        parts = [self.fill(open(f"{HERE}/configs/{name}").read()) for name in names]
        return write(f"{self.folder}/{re.sub('[.](head|tail)$', '', names[0])}{suffix}", middle.join(parts))
