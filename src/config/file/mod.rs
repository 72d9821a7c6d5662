//! Parses the config file. `sections/` has one file per section; start at `parse`. Keys are read one
//! by one, not by `derive(Deserialize)`: serde stops at the first problem of a table, and its
//! messages repeat values that may be secrets.

mod checks;
mod config_table;
mod key_lines;
mod key_path;
mod named_files;
mod parse_report;
mod sections;
mod units;
mod value_readers;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;

use super::problem::{LoadedConfig, Problem, Problems};
use super::{Config, DirectoryKind, Emulator, Log};
use crate::profiles::Profile;
use crate::watched_files::FileContent;
use config_table::ConfigTable;
use parse_report::ParseReport;
use sections::{
    drain_section, emulator_section, http_section, limits_section, listener_section, log_section,
    operator_section, route_section, store_section, upstream_section, users_section, workers,
};

pub use key_lines::KeyLines;
pub use units::parse_quota;
pub use value_readers::is_name;

/// Larger than any hand-written file; a wrong path must not fill the memory.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// Read where `--config` names no other.
pub const DEFAULT_FILE: &str = "config.toml";

/// The settings of an emulator that runs alone.
#[derive(Clone, Debug, PartialEq)]
pub struct EmulatorAlone {
    pub emulator: Emulator,
    pub log: Log,
}

/// Reads and checks a config file. Fails with every problem at once.
pub fn load(path: &Path) -> Result<LoadedConfig, Problems> {
    load_text(path, read(path))
}

/// As `load`, of a file that has been read already.
pub(super) fn load_file(file: FileContent) -> Result<LoadedConfig, Problems> {
    let text = file.content.and_then(|bytes| text_of(&bytes));
    load_text(&file.path, text)
}

fn load_text(path: &Path, text: io::Result<String>) -> Result<LoadedConfig, Problems> {
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
    let text = text.map_err(|error| refused(format!("cannot be read: {error}")))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    parse(&text, folder).map_err(|problems| Problems {
        file: name.clone(),
        ..problems
    })
}

/// What `tollgate emulate` needs: its own section and the log's. The rest of the file is not
/// checked, and without the default file both sections have their defaults.
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
    let root = ConfigTable::root(&report);
    root.leave_unread();
    let section = root.section("emulator");
    let alone = EmulatorAlone {
        emulator: emulator_section::emulator(&report, section.as_ref()),
        log: log_section::log(&root),
    };
    drop((section, root));
    let (problems, ..) = report.close();
    match problems.is_empty() {
        true => Ok(alone),
        false => Err(refused(problems)),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    text_of(&bytes)
}

fn text_of(bytes: &[u8]) -> io::Result<String> {
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(ErrorKind::FileTooLarge.into());
    }
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))?;
    Ok(text.to_owned())
}

/// Checks the text of a config file that lies in `folder`.
pub fn parse(text: &str, folder: &Path) -> Result<LoadedConfig, Problems> {
    parse_with_keys(text, folder).0
}

/// Also returns the keys that were read.
pub(super) fn parse_with_keys(
    text: &str,
    folder: &Path,
) -> (Result<LoadedConfig, Problems>, BTreeSet<String>) {
    // Some editors write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let report = ParseReport::new(text, table.get_ref(), folder, &errors);
    let config = config(&ConfigTable::root(&report));
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

/// None only when a required key is missing or wrong; the report has that problem.
fn config(root: &ConfigTable<'_>) -> Option<Config> {
    let profile = root.or(
        "profile",
        value_readers::word(Profile::BY_NAME),
        Profile::DEFAULT,
    );
    let workers = root.or("workers", workers::workers, workers::cores());

    // First: the emulator's section decides which files may be missing until the first run.
    let emulator: Option<Emulator> = root
        .section("emulator")
        .map(|table| emulator_section::emulator(root.report, Some(&table)));
    let listeners = listener_section::listeners(root);
    let operator = operator_section::operator(root);
    let (upstreams, names) = upstream_section::upstreams(root, profile);
    let (users, users_upstream) = users_section::users(root, &names.names);
    let api_keys = users_section::api_keys(root, &names.names);
    let http = http_section::http(root);
    let users_upstream_name = names.names.get(users_upstream).cloned();
    let relayed = users_upstream_name.filter(|_| users.directory == DirectoryKind::Upstream);
    let routes = route_section::routes(root, profile, relayed.as_ref(), &http.allow_fields, &names);
    let limits = limits_section::limits(root, profile, &routes, users.directory);
    let store = store_section::store(root);
    let drain = drain_section::drain(root);
    let log = log_section::log(root);

    let config = Config {
        profile,
        workers,
        listeners,
        operator,
        upstreams: upstreams?,
        users_upstream,
        users,
        api_keys,
        routes: routes.into_iter().map(Arc::new).collect(),
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
