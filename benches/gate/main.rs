//! Benches of the whole gate: the real binary, real sockets, one command each. See
//! benches/README.md.
#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on says so by a panic"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "benches read the clock and spawn clients of their own"
)]

mod growth;
mod guard;
mod page;
mod renewal;
mod support;
mod training;

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const USAGE: &str = "\
cargo bench --bench gate -- guard [--record] [FIGURE...]   instructions per request, and per token at a start
cargo bench --bench gate -- renewal [--rate N] [--write PAGE]   what clients notice of renewals
cargo bench --bench gate -- growth [--write PAGE] [AXIS...]     how cost grows with size
cargo bench --bench gate -- training --binary PATH              the load of deploy/build-pgo.sh

`cargo test` runs this without arguments: it was compiled, and that is all.";

fn main() -> ExitCode {
    // cargo bench adds `--bench` at the end.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    raise_open_files();
    match words.split_first() {
        Some((first, rest)) if first == "guard" => guard::run(rest),
        Some((first, rest)) if first == "renewal" => renewal::run(rest),
        Some((first, rest)) if first == "growth" => growth::run(rest),
        Some((first, rest)) if first == "training" => training::run(rest),
        _ => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
    }
}

/// Ten thousand connections need as many descriptors, here as in the gate.
fn raise_open_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}
