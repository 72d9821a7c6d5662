#!/usr/bin/env bash
# Builds every fuzz target and runs each for SECONDS (default 5), with the project's own
# files as seeds. Inputs that crash a target are left in artifacts/.
#   fuzz/run.sh [SECONDS] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-5}
shift || true
# libFuzzer's instrumentation is not stable yet; this lets the stable compiler use it.
export RUSTC_BOOTSTRAP=1
# The address sanitizer finds faults of unsafe code; there is none here.
common=(--fuzz-dir . --sanitizer none)

seed() { # seed TARGET: each line of standard input is a seed
    mkdir -p "corpus/$1"
    local line
    while IFS= read -r line; do
        printf '%b' "$line" >"corpus/$1/seed-$(printf '%s' "$line" | cksum | tr ' ' -)"
    done
}

# The second column is the path.
awk '!/^#/ { print $2 }' ../tests/suite/configs/nodes.txt | seed request_target
for target in credential_header login_body login_response http1_framing http1_response http2_flood; do
    grep -v '^#' "seeds/$target.txt" | seed "$target"
done
mkdir -p corpus/config_file
cp ../config.toml ../deploy/*.toml ../tests/suite/configs/*/*.toml corpus/config_file/

# The versions of the program; cargo adds what only the fuzzer needs.
cp ../Cargo.lock Cargo.lock

cargo-fuzz fuzz build "${common[@]}"
[ "$#" -gt 0 ] || set -- $(sed -n 's/^name = "\([a-z0-9_]*\)"$/\1/p' Cargo.toml)
for target in "$@"; do
    echo "-- $target"
    cargo-fuzz fuzz run "${common[@]}" "$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 2>"target/$target.log" ||
        { tail -n 60 "target/$target.log"; exit 1; }
    grep -E 'number_of_executed_units|new_units_added' "target/$target.log"
done
