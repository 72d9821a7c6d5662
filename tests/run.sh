#!/usr/bin/env bash
# Installs what the checks need and runs all of them, or the parts that are named.
#   tests/run.sh                 everything, as CI does
#   tests/run.sh lints tests     some parts; they are the functions below
#   tests/run.sh fuzzing         not among "everything": it builds every dependency once more
# Needs a Rust toolchain; the tools come from Debian's and PyPI's packages.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

packages() {
    missing=()
    need cc gcc
    need c++ g++
    need cmake cmake
    need curl curl
    need openssl openssl
    need python3 python3
    need promtool prometheus
    need faketime faketime
    need valgrind valgrind
    need redis-server redis-server
    need ip iproute2
    need tinyproxy tinyproxy
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    python3 -c 'import yaml' 2>/dev/null || missing+=(python3-yaml)
    [ "${#missing[@]}" -gt 0 ] || return 0
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Installs a prebuilt cargo tool in target/tools.
tool() { # tool NAME VERSION
    local venv=target/tools
    if [ "$("$venv/bin/python" -m pip show "astral-dev-toolchain-$1" 2>/dev/null | sed -n 's/^Version: //p')" != "$2" ]; then
        say "installing $1"
        [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check "astral-dev-toolchain-$1==$2"
    fi
    export PATH="$PWD/$venv/bin:$PATH"
}

format() {
    cargo fmt --check
    cargo fmt --check --manifest-path fuzz/Cargo.toml
}

lints() {
    cargo clippy --locked --all-targets -- -D warnings
    cargo clippy --locked --no-default-features --lib --bins -- -D warnings
}

# Licences, sources and duplicate crates by deny.toml; unused dependencies.
dependencies() {
    tool cargo-deny 0.20.2
    tool cargo-shear 1.14.0
    # cargo-deny runs offline and reads the crates of all targets; a build fetches only those of its own target.
    cargo fetch --locked --quiet
    cargo-deny --offline --log-level error check licenses bans sources
    cargo-shear
}

# Repeats `dependencies` as on a machine that has fetched nothing yet.
fresh() {
    local home
    home=$(mktemp -d)
    # shellcheck disable=SC2064 # expand now: the folder of this call
    trap "rm -rf '$home'" EXIT
    CARGO_HOME="$home" tests/run.sh dependencies
    rm -rf "$home"
}

# The client and the server of gRPC, for tests/suite/http2_upstreams.
grpc() {
    local venv=target/tools
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check grpcio==1.85.3
}

tests() {
    grpc
    cargo test --locked --all-targets
}

# Counts the instructions of a request, and of a token at a start, in the shipped build: at most 3 % over the recorded
# figures.
instructions() {
    cargo build --locked --profile dist --bin tollgate
    cargo test --locked --quiet --bench gate -- guard --binary "${CARGO_TARGET_DIR:-target}/dist/tollgate"
}

documentation() {
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
}

# Builds the fuzz target of each parser of outside bytes and runs it for a few seconds.
fuzzing() {
    tool cargo-fuzz 0.13.2
    fuzz/run.sh "${FUZZ_SECONDS:-5}"
}

configurations() {
    cargo build --locked --quiet
    "${CARGO_TARGET_DIR:-target}/debug/tollgate" check --config config.toml >/dev/null
    echo "config.toml: good"
    # The tests check the files in deploy/ and in the documents (tests/suite/documents).
}

[ "$#" -gt 0 ] || set -- format lints dependencies fresh tests instructions documentation configurations
packages
for part in "$@"; do
    say "$part"
    begin=$SECONDS
    "$part"
    echo "$part: passed in $((SECONDS - begin)) s"
done
say "all checks passed"
