//! The command line: serve, check, health, profiles, store, hash-password, new-key, emulate. Start at
//! `command`; larger commands have files of their own.

mod check_command;
mod health_command;
mod profiles_command;
mod store_command;

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sha2::{Digest as _, Sha256};

use crate::app::ExitOutcome;
use crate::config;
use crate::error_chain::causes;
use crate::logging::LogHandle;
use crate::profiles::check_password;
use crate::secret::Secret;
use crate::{app, identity, logging};
use health_command::HealthQuestion;

const EXAMPLES: &str = "\
Examples:
  tollgate                             serve with config.toml of this folder
  tollgate check --config gate.toml    print all problems, or what was understood
  tollgate health --ready              whether the running gate would serve a request
  tollgate hash-password < password    a hash for [users] first_admin
  tollgate new-key --name prometheus   a key for a service, and its [[api_key]]
  tollgate store export > backup.jsonl all that outlives a restart, while no gate runs

Exit codes: 0 done, 1 failed (check: the file has problems), 2 wrong command line.
A running gate reads its config file again when it changes, and on SIGHUP.";

/// An authenticating reverse proxy that logs in at the service behind it, once for all callers.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, after_help = EXAMPLES)]
struct CliArguments {
    /// The config file.
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        default_value = config::DEFAULT_FILE
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the gate; also what happens without a command.
    Serve,
    /// Check the config file and all it leads to on this host: every problem, or what was understood.
    Check {
        /// Also connect: name, certificate, login (it spends one at the upstream), store.
        #[arg(long)]
        connect: bool,
    },
    /// Ask the running gate whether it is alive: one line, exit code 0 or 1.
    Health {
        /// Ask whether the next request would succeed instead.
        #[arg(long)]
        ready: bool,
    },
    /// Read a password from standard input and print its hash.
    HashPassword,
    /// Make a key for a service: printed once, stored nowhere.
    NewKey {
        /// The service's name in the config file, the log and the metrics.
        #[arg(long, default_value = "my-service")]
        name: String,
    },
    /// List the logins of known services, or print one as configuration.
    Profiles {
        #[command(subcommand)]
        command: Option<profiles_command::ProfilesCommand>,
    },
    /// Look at, back up, fill or shrink the store, while no gate uses it.
    Store {
        #[command(subcommand)]
        command: store_command::StoreCommand,
    },
    /// Run the emulated service alone.
    #[cfg(feature = "emulator")]
    Emulate,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Problems),
    #[error("cannot start the log")]
    Log(#[from] logging::Error),
    #[error("cannot run")]
    App(#[source] app::Error),
    #[error("cannot read the password")]
    Unread(#[source] io::Error),
    #[error("no password on standard input")]
    Empty,
    #[error(transparent)]
    Weak(#[from] crate::profiles::BadPassword),
    #[error("cannot hash the password")]
    Hash(#[source] identity::HashFailed),
    #[error("cannot use the store")]
    Store(#[from] crate::store::TransferError),
    #[error("there is no profile of a login called {name}{meant}")]
    UnknownProfile { name: String, meant: String },
    #[error("cannot write the answer")]
    Unwritten(#[from] io::Error),
}

impl From<app::Error> for Error {
    fn from(error: app::Error) -> Self {
        match error {
            app::Error::Unusable(problems) => Self::Config(problems),
            other => Self::App(other),
        }
    }
}

/// Runs what the command line asks for.
pub fn run() -> ExitCode {
    // clap itself exits with 2 after a wrong command line, with 0 after --help.
    let arguments = CliArguments::parse();
    match command(arguments) {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: CliArguments) -> Result<ExitCode, Error> {
    let path = arguments.config;
    let mut out = io::stdout().lock();
    match arguments.command.unwrap_or(CliCommand::Serve) {
        CliCommand::Serve => {
            drop(out);
            serve(&path)
        }
        CliCommand::Check { connect } => check_command::run(&path, connect, &mut out).map(done),
        CliCommand::Health { ready } => {
            let question = match ready {
                true => HealthQuestion::Ready,
                false => HealthQuestion::Alive,
            };
            health_command::run(&path, question, &mut out)
        }
        CliCommand::Profiles { command } => profiles_command::run(command, &mut out).map(done),
        CliCommand::HashPassword => hash_password(&mut io::stdin().lock(), &mut out).map(done),
        CliCommand::NewKey { name } => new_key(&name, &mut out).map(done),
        CliCommand::Store { command } => {
            let loaded = config::load(&path)?;
            store_command::run(&command, &loaded.config.store, &mut out)?;
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "emulator")]
        CliCommand::Emulate => {
            drop(out);
            let alone = config::load_emulator(&path)?;
            let _logging = LogHandle::start(&alone.log)?;
            app::emulate(&alone.emulator)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn done(_: ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// The error and its causes, one line each.
fn print_error(error: &Error) {
    let mut text = error.to_string();
    for cause in causes(error) {
        text.push_str(&format!("\n  because: {cause}"));
    }
    // A closed standard error has no reader.
    let _ = writeln!(io::stderr(), "{text}");
}

/// How long the last line on standard error may take.
const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(1);

fn serve(path: &Path) -> Result<ExitCode, Error> {
    let loaded = config::load(path)?;
    let logging = Arc::new(LogHandle::start(&loaded.config.log)?);
    for warning in &loaded.warnings {
        tracing::warn!(line = warning.line, "config: {warning}");
    }
    let outcome = app::serve(path, loaded, &logging);
    let lost = logging.close();
    if lost > 0 {
        print_with_timeout(format!(
            "{lost} lines of the log were lost: standard output did not take them\n"
        ));
    }
    Ok(match outcome? {
        ExitOutcome::Clean if lost == 0 => ExitCode::SUCCESS,
        ExitOutcome::Clean | ExitOutcome::Cut | ExitOutcome::Failed => ExitCode::FAILURE,
    })
}

/// Standard error may be a pipe that is not read.
fn print_with_timeout(text: String) {
    let (written, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = written.send(());
    });
    let _ = wait.recv_timeout(LAST_LINE_TIMEOUT);
}

/// A longer line is not a password that the users node would accept.
const LONGEST_LINE: u64 = 4096;

fn hash_password(input: &mut impl io::BufRead, out: &mut impl io::Write) -> Result<(), Error> {
    let mut line = zeroize::Zeroizing::new(String::new());
    let mut input = input.take(LONGEST_LINE);
    input.read_line(&mut line).map_err(Error::Unread)?;
    let password = Secret::new(line.trim_end_matches(['\r', '\n']));
    if password.expose().is_empty() {
        return Err(Error::Empty);
    }
    check_password(&password)?;
    let hash = identity::hash_password(&password).map_err(Error::Hash)?;
    writeln!(out, "{hash}")?;
    Ok(())
}

fn new_key(name: &str, out: &mut impl io::Write) -> Result<(), Error> {
    let key = identity::mint_key();
    let digest: [u8; 32] = Sha256::digest(key.expose().as_bytes()).into();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    // The key is shown only here; the config file gets its digest.
    writeln!(out, "key      {}", key.expose())?;
    writeln!(out, "sha256   {hex}")?;
    writeln!(out, "header   Authorization: Apikey <key>\n")?;
    writeln!(
        out,
        "The key is kept nowhere: give it to the service now. For the config file:\n"
    )?;
    writeln!(out, "[[api_key]]\nname = {:?}\nsha256 = [\"{hex}\"]", name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        CliArguments::command().debug_assert();
        let serve = CliArguments::try_parse_from(["tollgate"]).unwrap();
        assert!(serve.command.is_none());
        let check = CliArguments::try_parse_from(["tollgate", "check", "--config", "x"]).unwrap();
        assert_eq!(check.config, PathBuf::from("x"));
    }

    #[test]
    fn a_new_key_fits_the_config_and_the_webapps_rules() {
        let mut out = Vec::new();
        new_key("prometheus", &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let key = text
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap();
        assert_eq!(key.len(), 4 + 43);
        assert!(crate::profiles::API_KEY_LENGTH.contains(&key.len()));
        let pasted = &text[text.find("[[api_key]]").unwrap()..];
        let config = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.main]\nurl = \"http://[::1]:1\"\n\
             login = {{ username = \"gate\", password = {{ env = \"PATH\" }} }}\n{pasted}"
        );
        let loaded = config::parse(&config, Path::new("")).unwrap();
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        assert_eq!(loaded.config.api_keys[0].digests, [digest]);
    }

    #[test]
    fn a_hash_is_argon2id_and_a_weak_password_gets_none() {
        let mut out = Vec::new();
        hash_password(&mut &b"Passw0rd!\nrest"[..], &mut out).unwrap();
        assert!(out.starts_with(b"$argon2id$"));
        for bad in [&b""[..], b"\n", b"short", &[0xff, 0xfe]] {
            let mut out = Vec::new();
            let error = hash_password(&mut &bad[..], &mut out).unwrap_err();
            assert!(!error.to_string().contains("short"));
            assert!(out.is_empty());
        }
    }
}
