//! The first run: development certificates and the emulated services in this process.

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

/// As many as the settings say.
pub(super) async fn start(
    settings: &config::Emulator,
    scope: &TaskScope,
) -> Result<Vec<Emulator>, Error> {
    let mut running = Vec::new();
    for one in settings.each() {
        let settings = Settings::open(&one).map_err(Error::Emulator)?;
        let emulator = Emulator::start(settings, scope).await;
        running.push(emulator.map_err(Error::Emulator)?);
    }
    Ok(running)
}
