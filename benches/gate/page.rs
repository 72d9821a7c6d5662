//! Writes results to the screen, and between two markers of a page.

use std::path::Path;

/// Prints `text`, and writes it between the markers called `name` if there is a page.
pub(crate) fn put(page: Option<&Path>, name: &str, text: &str) {
    println!("{text}");
    let Some(path) = page else { return };
    let (begin, end) = (
        format!("<!-- {name}: begin -->"),
        format!("<!-- {name}: end -->"),
    );
    let old = std::fs::read_to_string(path).unwrap();
    let split = old
        .split_once(&begin)
        .and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let (head, tail) =
        split.unwrap_or_else(|| panic!("{} has no {begin} and {end}", path.display()));
    let measured = circumstances();
    std::fs::write(
        path,
        format!("{head}{begin}\n{measured}\n\n{text}\n{end}{tail}"),
    )
    .unwrap();
    println!("written into {}", path.display());
}

/// The date and the machine.
fn circumstances() -> String {
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    format!("Measured {now}, {cores} cores of {model}; load of the machine at the end {load}.")
}
