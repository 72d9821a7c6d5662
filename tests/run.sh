#!/usr/bin/env bash
# Installs what the tests need and runs every check: format, lints, tests, docs, and
# `tollgate check` of each configuration shipped. Needs a Rust toolchain and, for the
# tools below, Debian's packages; nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

missing=()
need cc gcc
need cmake cmake
need curl curl
need python3 python3
need promtool prometheus
if [ "${#missing[@]}" -gt 0 ]; then
    say "installing ${missing[*]}"
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

say "format"
cargo fmt --check

say "lints"
cargo clippy --locked --all-targets -- -D warnings
cargo clippy --locked --no-default-features --lib --bins -- -D warnings

say "tests"
cargo test --locked --all-targets

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet

say "configurations shipped"
for file in config.toml deploy/*.toml; do
    cargo run --locked --quiet -- check --config "$file" >/dev/null
    echo "$file: good"
done

say "all checks passed"
