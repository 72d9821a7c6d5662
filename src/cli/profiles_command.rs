//! `profiles`: the logins of known services.

use std::io::Write;

use clap::Subcommand;

use super::Error;
use crate::config::nearest;
use crate::profiles::{SERVICE_LOGINS, ServiceLogin};

#[derive(Debug, Subcommand)]
pub(super) enum ProfilesCommand {
    /// Print one as it would be written in the config file.
    Show { name: String },
}

pub(super) fn run(command: Option<ProfilesCommand>, out: &mut impl Write) -> Result<(), Error> {
    let Some(ProfilesCommand::Show { name }) = command else {
        for service in SERVICE_LOGINS {
            writeln!(out, "{:<16} {}", service.name, service.summary())?;
        }
        return Ok(());
    };
    let Some(service) = ServiceLogin::named(&name) else {
        let names = SERVICE_LOGINS.iter().map(|service| service.name);
        let meant = nearest(&name, names).map(|near| format!(", did you mean {near}?"));
        let meant = meant.unwrap_or_else(|| ", tollgate profiles lists them".to_owned());
        return Err(Error::UnknownProfile { name, meant });
    };
    write!(out, "{}", service.as_config("main"))?;
    Ok(())
}
