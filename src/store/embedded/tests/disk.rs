//! A simulated disk that can be full, fail or lose power at any call.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redb::{Database, StorageBackend};

use crate::store::embedded::open;
use crate::store::{OpenError, Store};

/// A disk writes whole sectors.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub(super) enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Refuses writes that extend the disk or fill a hole.
    Full(u64),
    /// The next sync succeeds, but reports an error.
    SyncLies,
    /// No sync returns.
    Hangs,
    /// Power fails after so many more writes and syncs.
    PowerAfter(u64),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) synced: Vec<u8>,
    now: Vec<u8>,
    pub(super) unsynced: Vec<Write>,
    pub(super) fault: Fault,
    pub(super) calls: u64,
    pub(super) syncs: u64,
}

/// Clones share one disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub(super) fn of(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State::of(image))))
    }

    /// A store on this disk; changes time out after the given time.
    pub(crate) fn store(&self, wait_limit: Duration) -> Store {
        Store::Embedded(super::start(self).unwrap()).with_timeout(wait_limit)
    }

    /// Whether syncs return.
    pub(crate) fn hangs(&self, hangs: bool) {
        self.state().fault = if hangs { Fault::Hangs } else { Fault::None };
    }

    /// Replaces the content by that of another disk.
    pub(super) fn replace(&self, image: Vec<u8>) {
        *self.state() = State::of(image);
    }

    /// A disk with an empty store.
    pub(crate) fn laid_out() -> Self {
        let disk = Self::of(Vec::new());
        let database =
            open::open_backend("test".as_ref(), disk.clone(), false, open::CACHE_OF_A_GATE)
                .unwrap();
        open::create_tables(&database).unwrap();
        database.close().unwrap();
        disk
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn open(&self) -> Result<Database, OpenError> {
        let path = "test".as_ref();
        let database = open::open_backend(path, self.clone(), false, open::CACHE_OF_A_GATE)?;
        open::check_schema(path, &database)?;
        Ok(database)
    }

    /// The disk after a power cut: all synced writes, and of the others those sectors that
    /// `is_written` selects.
    pub(super) fn after_a_power_cut(&self, mut is_written: impl FnMut() -> bool) -> Self {
        let state = self.state();
        let mut image = state.synced.clone();
        for write in &state.unsynced {
            match write {
                Write::Length(length) if is_written() => {
                    image.resize(usize::try_from(*length).unwrap(), 0);
                }
                Write::Length(_) => {}
                Write::Bytes(offset, bytes) => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if is_written() {
                            put(&mut image, *offset + (number * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        Self::of(image)
    }
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    if image.len() < start + bytes.len() {
        image.resize(start + bytes.len(), 0);
    }
    image[start..start + bytes.len()].copy_from_slice(bytes);
}

impl State {
    fn of(image: Vec<u8>) -> Self {
        Self {
            synced: image.clone(),
            now: image,
            unsynced: Vec::new(),
            fault: Fault::None,
            calls: 0,
            syncs: 0,
        }
    }

    /// One call that a fault may fail.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        if let Fault::PowerAfter(left) = &mut self.fault {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let start = usize::try_from(offset).unwrap();
        let bytes = state.now.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        // As on a real disk, a full disk is noticed at the write.
        state.now.resize(usize::try_from(length).unwrap(), 0);
        state.unsynced.push(Write::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.state().fault == Fault::Hangs {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut state = self.state();
        state.call()?;
        state.syncs += 1;
        state.synced = state.now.clone();
        state.unsynced.clear();
        if state.fault == Fault::SyncLies {
            state.fault = Fault::None;
            return Err(io::Error::other("the disk lost its cable"));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        if let Fault::Full(room) = state.fault
            && offset + data.len() as u64 > room
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut state.now, offset, data);
        state.unsynced.push(Write::Bytes(offset, data.to_vec()));
        Ok(())
    }
}
