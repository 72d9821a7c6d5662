//! The functions that a figure's instructions are in: the difference of two callgrind profiles.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

const SHOWN: usize = 40;

/// Prints the functions by their instructions in `long` less those in `short`, for each of the
/// additional requests.
pub(super) fn print_difference(short: &Path, long: &Path, many: usize) {
    let (before, after) = (functions(short), functions(long));
    let mut more: Vec<(i64, &str)> = after
        .iter()
        .map(|(name, count)| (count - before.get(name).unwrap_or(&0), name.as_str()))
        .collect();
    more.sort_unstable_by_key(|(count, _)| -count);
    for (count, name) in more.iter().take(SHOWN) {
        let per_one = *count as f64 / many as f64;
        println!("{per_one:10.0}  {name}");
    }
}

/// Instructions of each function itself, inlined lines included.
fn functions(profile: &Path) -> HashMap<String, i64> {
    let output = Command::new("callgrind_annotate")
        .args(["--threshold=100", "--auto=no"])
        .arg(profile)
        .output()
        .unwrap();
    let mut all = HashMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((count, rest)) = line.trim_start().split_once(" (") else {
            continue;
        };
        let (Ok(count), Some((_, place))) = (
            count.replace(',', "").parse::<i64>(),
            rest.split_once("%)  "),
        ) else {
            continue;
        };
        // file:function [object]
        let place = place.split(" [").next().unwrap_or(place);
        let name = place
            .split_once(".rs:")
            .or(place.split_once(".c:"))
            .map_or(place, |(_, name)| name);
        *all.entry(name.to_owned()).or_default() += count;
    }
    all
}
