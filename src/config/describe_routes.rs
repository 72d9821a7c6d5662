//! The route table in words, for `check`.

use std::fmt::Write as _;
use std::sync::Arc;

use super::display::{DurationText, listed};
use super::{Route, Target};

/// The route table in columns.
pub(super) fn routes(routes: &[Arc<Route>], names_upstreams: bool) -> String {
    let rows = routes.iter().map(|one| route(one, names_upstreams));
    let rows: Vec<[String; 8]> = rows.collect();
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "  {}", line.join("  ").trim_end());
    }
    text
}

fn route(route: &Route, names_upstream: bool) -> [String; 8] {
    let mut target = route.target.to_string();
    if names_upstream && route.target == Target::Upstream {
        let _ = write!(target, " {}", route.upstream);
    }
    if let Some(prefix) = &route.strip_prefix {
        let _ = write!(target, " without {prefix}");
    }
    let methods = match &*route.methods {
        [] => "any".to_owned(),
        methods => listed(methods),
    };
    let host = match &*route.hosts {
        [] => String::new(),
        hosts => listed(hosts),
    };
    [
        route.name.to_string(),
        methods,
        format!("{host}{}", route.path),
        listed(&route.access),
        target,
        route.class.to_string(),
        bytes(route.max_body),
        DurationText(route.timeout).to_string(),
    ]
}

fn bytes(number: u64) -> String {
    let units = [
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
    ];
    let small = [(1 << 10, "KiB"), (1, "B")];
    let fits = |(size, _): &(u64, &str)| number >= *size && number.is_multiple_of(*size);
    let (size, unit) = units
        .into_iter()
        .chain(small)
        .find(fits)
        .unwrap_or((1, "B"));
    format!("{}{unit}", number / size)
}
