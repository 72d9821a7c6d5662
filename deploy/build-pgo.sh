#!/bin/sh
# Builds the program that is shipped, by profile: an instrumented build, training by the project's own
# load (benches/gate/training.rs), and the final build, which is told what was executed how often.
#
#   deploy/build-pgo.sh OUTPUT [options for cargo build, such as --no-default-features]
#
# RUSTFLAGS are added to both builds. Needs llvm-profdata of rustc's own LLVM: rustup's component
# llvm-tools (added if rustup is there), or llvm-profdata-NN of Debian's package llvm-NN. Without it
# the program is built without a profile, and a line in capitals says so.
# Takes about three builds: 25 minutes on two cores. PGO_DIR (target/pgo) keeps what was built.
set -eu

[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
case $1 in /*) output=$1 ;; *) output=$PWD/$1 ;; esac
shift
cd "$(dirname "$0")/.."
work=${PGO_DIR:-$PWD/target/pgo}
flags=${RUSTFLAGS:-}
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

# build FOLDER FLAGS [options]: prints the path of the program.
build() {
    folder=$1 more=$2
    shift 2
    RUSTFLAGS="$flags $more" cargo build --locked --profile dist --bin tollgate \
        --target "$host" --target-dir "$work/$folder" "$@" >&2
    echo "$work/$folder/$host/dist/tollgate"
}

profdata() {
    own=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
    if [ ! -x "$own" ] && command -v rustup >/dev/null; then
        rustup component add llvm-tools >&2 || true
    fi
    command -v "$own" || command -v "llvm-profdata-$llvm"
}

if ! merge=$(profdata); then
    echo "== NOT BUILT BY PROFILE: no llvm-profdata of LLVM $llvm. Install Debian's llvm-$llvm, or rustup's llvm-tools." >&2
    cp "$(build plain "" "$@")" "$output"
    exit
fi

echo "== instrumented build" >&2
rm -rf "$work/raw"
instrumented=$(build generate "-Cprofile-generate=$work/raw" "$@")

echo "== training" >&2
RUSTFLAGS="" LLVM_PROFILE_FILE="$work/raw/%p-%m.profraw" \
    cargo test --locked --quiet --bench gate -- training --binary "$instrumented" >&2
"$merge" merge -o "$work/merged.profdata" "$work"/raw/*.profraw

echo "== final build" >&2
rm -rf "$work/use" # cargo does not see that a profile has changed
# What is executed often lies together, 1.6 MB of 11, instead of on every other page.
together=-Clink-arg=-Wl,-z,keep-text-section-prefix
cp "$(build use "-Cprofile-use=$work/merged.profdata $together" "$@")" "$output"
echo "built by profile: $output" >&2
