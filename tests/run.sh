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
cargo run --locked --quiet -- check --config config.toml >/dev/null
echo "config.toml: good"
# Files of another machine: the same file, with the places it names laid out in a folder.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/etc/tollgate/tls" "$root/run/secrets"
for file in etc/tollgate/tls/{gate.pem,gate.key,webapp-ca.pem} run/secrets/{webapp-password,webapp-api-key,gate-admin-password}; do
    echo "Stands-4-the-real-one" >"$root/$file"
    chmod 600 "$root/$file"
done
for file in deploy/*.toml; do
    sed -e "s|/etc/tollgate/|$root/etc/tollgate/|g" -e "s|/run/secrets/|$root/run/secrets/|g" "$file" >"$root/config.toml"
    cargo run --locked --quiet -- check --config "$root/config.toml" >/dev/null
    echo "$file: good"
done

say "all checks passed"
