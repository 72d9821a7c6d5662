//! The first run: development certificates and the emulator in this process.

use tracing::info;

use super::Error;
use crate::config;
use crate::emulator::{Emulator, Settings, certificates};
use crate::lifecycle::TaskScope;

/// Makes what is missing in the development folder.
pub(super) fn make_certificates(settings: &config::Emulator) -> Result<(), Error> {
    let development = certificates::make(&settings.folder).map_err(Error::Emulator)?;
    for file in &development.made {
        info!(file = %file.display(), "made for development");
    }
    Ok(())
}

pub(super) async fn start(
    settings: &config::Emulator,
    scope: &TaskScope,
) -> Result<Emulator, Error> {
    let settings = Settings::open(settings).map_err(Error::Emulator)?;
    Emulator::start(settings, scope)
        .await
        .map_err(Error::Emulator)
}
