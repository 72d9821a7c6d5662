# Shortcuts to the parts of tests/run.sh, which is what CI runs.

# everything
all:
    ./tests/run.sh

format:
    ./tests/run.sh format

lints:
    ./tests/run.sh lints

# licences, sources, duplicate and unused dependencies
dependencies:
    ./tests/run.sh dependencies

tests:
    ./tests/run.sh tests

# instructions per request, compared with benches/instructions.txt
instructions:
    ./tests/run.sh instructions

documentation:
    ./tests/run.sh documentation

# `tollgate check` of the shipped configuration
configurations:
    ./tests/run.sh configurations

# every fuzz target, for the given seconds each
fuzzing seconds="5":
    FUZZ_SECONDS={{seconds}} ./tests/run.sh fuzzing

# the gate in front of the emulator
run:
    cargo run --release
