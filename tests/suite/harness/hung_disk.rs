//! A disk that hangs and recovers, under the real store of a real gate: the program's system
//! calls on it do not return meanwhile. It needs no device and no mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::program::binary;

/// The folder `disk` beside a configuration, with a switch that makes it hang.
pub(crate) struct HungDisk {
    folder: PathBuf,
    library: PathBuf,
    hung_while: PathBuf,
}

impl HungDisk {
    /// A disk that initially works.
    pub(crate) fn next_to(config: &Path) -> Self {
        let folder_of_config = config.parent().unwrap();
        let folder = folder_of_config.join("disk");
        std::fs::create_dir(&folder).unwrap();
        let library = folder_of_config.join("hung_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/harness/hung_disk.c");
        let built = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .output()
            .expect("cc: tests/run.sh installs it");
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        Self {
            // The path as the kernel reports it.
            folder: folder.canonicalize().unwrap(),
            library,
            hung_while: folder_of_config.join("hung"),
        }
    }

    pub(crate) fn hang(&self) {
        std::fs::write(&self.hung_while, "").unwrap();
    }

    pub(crate) fn respond(&self) {
        std::fs::remove_file(&self.hung_while).unwrap();
    }

    /// A gate with its store on this disk.
    pub(crate) fn gate(&self, config: &Path) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["serve", "--config"])
            .arg(config)
            .env("LD_PRELOAD", &self.library)
            .env("HUNG_DISK", &self.folder)
            .env("HUNG_DISK_WHILE", &self.hung_while);
        command
    }
}
