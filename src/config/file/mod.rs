//! The file as written: one file per section, each from text to checked values.
//! Read key by key, not by `derive(Deserialize)`: serde stops at the first thing
//! that is wrong in a table, and its messages repeat values that may be secrets.

mod checks;
mod limits;
mod lines;
mod listener;
mod misc;
mod places;
mod report;
mod request_rules;
mod routes;
mod section;
mod shared_store;
mod store;
mod units;
mod upstream;
mod users;
mod value;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use toml::de::DeTable;

use super::problem::{LoadedConfig, Problem, Problems};
use super::{Config, Emulator, Log, Upstream};
use crate::profiles::Profile;
use report::ParseReport;
use section::ConfigTable;

pub use lines::KeyLines;
pub use units::parse_quota;
pub use value::is_name;

/// More than anybody writes by hand; keeps a wrong path from filling the memory.
const LONGEST_FILE: u64 = 1 << 20;

/// Read where no other is named.
pub const DEFAULT_FILE: &str = "config.toml";

/// The settings of an emulator that runs alone.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatorAlone {
    pub emulator: Emulator,
    pub log: Log,
}

/// Reads and checks a config file. Fails with every problem at once.
pub fn load(path: &Path) -> Result<LoadedConfig, Problems> {
    let name = path.display().to_string();
    let refused = |reason: String| Problems {
        file: name.clone(),
        problems: vec![Problem {
            line: None,
            key: "file".to_owned(),
            reason,
            suggestion: Some("name another with --config".to_owned()),
        }],
        warnings: Vec::new(),
        rest: None,
    };
    let text = read(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    parse(&text, folder).map_err(|problems| Problems {
        file: name.clone(),
        ..problems
    })
}

/// What `tollgate emulate` needs: its own section and the log's. Nothing else of the file has to
/// make sense, and without the default file everything has its default.
pub fn load_emulator(path: &Path) -> Result<EmulatorAlone, Problems> {
    let name = path.display().to_string();
    let refused = |problems| Problems::found(name.clone(), problems);
    let text = match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path == Path::new(DEFAULT_FILE) => {
            String::new()
        }
        read => read.map_err(|error| {
            refused(vec![Problem {
                line: None,
                key: "file".to_owned(),
                reason: format!("cannot be read: {error}"),
                suggestion: Some("name another with --config".to_owned()),
            }])
        })?,
    };
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let (table, errors) = DeTable::parse_recoverable(&text);
    let report = ParseReport::new(&text, table.get_ref(), folder, &errors);
    let root = report.root();
    root.leave_unread();
    let section = root.section("emulator");
    let alone = EmulatorAlone {
        emulator: misc::emulator(&report, section.as_ref()),
        log: misc::log(&root),
    };
    drop((section, root));
    let (problems, ..) = report.close();
    match problems.is_empty() {
        true => Ok(alone),
        false => Err(refused(problems)),
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path)?.take(LONGEST_FILE + 1);
    let mut file = std::io::BufReader::new(file);
    if file.read_to_string(&mut text)? as u64 > LONGEST_FILE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// Checks the text of a config file that lies in `folder`.
pub fn parse(text: &str, folder: &Path) -> Result<LoadedConfig, Problems> {
    parse_with_keys(text, folder).0
}

/// Also tells which keys were asked for.
pub(super) fn parse_with_keys(
    text: &str,
    folder: &Path,
) -> (Result<LoadedConfig, Problems>, BTreeSet<String>) {
    // A byte order mark is what some editors put there; it says nothing.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let report = ParseReport::new(text, table.get_ref(), folder, &errors);
    let config = config(&report.root());
    let lines = report.lines.clone();
    let (problems, warnings, known) = report.close();
    let result = match config {
        Some(config) if problems.is_empty() => Ok(LoadedConfig {
            config,
            warnings,
            lines,
        }),
        rest => Err(Problems {
            file: "config.toml".to_owned(),
            problems,
            warnings,
            rest: rest.map(|config| Box::new((config, lines))),
        }),
    };
    (result, known)
}

/// None only when something that cannot be left out is missing or wrong; that is
/// then among the problems.
fn config(root: &ConfigTable<'_>) -> Option<Config> {
    let profile = root.or("profile", value::word(Profile::BY_NAME), Profile::DEFAULT);
    let workers = root.or("workers", misc::workers, misc::cores());

    // First, because it says which files may still be missing.
    let emulator: Option<Emulator> = root
        .section("emulator")
        .map(|table| misc::emulator(root.report, Some(&table)));
    let listeners = listener::listeners(root);
    let operator = misc::operator(root);
    let upstream: Option<Upstream> = upstream::upstream(root, profile);
    let users = users::users(root);
    let api_keys = users::api_keys(root);
    let http = request_rules::http(root);
    let routes = routes::routes(root, profile, users.directory, &http.allow_fields);
    let limits = limits::limits(root, profile, &routes, users.directory);
    let store = store::store(root);
    let drain = misc::drain(root);
    let log = misc::log(root);

    let config = Config {
        profile,
        workers,
        listeners,
        operator,
        upstream: upstream?,
        users,
        api_keys,
        routes,
        limits,
        http,
        store,
        drain,
        log,
        emulator,
    };
    checks::check_whole(root.report, &config);
    Some(config)
}
