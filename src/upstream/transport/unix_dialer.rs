//! Opens connections to an upstream behind a Unix socket, and follows the socket's file: a server that
//! restarts makes a new one.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::dial_error::{DialError, SocketFault, WaitingFor};
use super::retire_flag::RetireFlag;
use super::tracked_stream::{TrackedStream, Transport};
use crate::lifecycle::ShutdownSignal;

/// Between two attempts while the server's queue is full: a Unix socket refuses at once.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);
/// Between two looks at the socket's file.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Opens connections to one upstream over its Unix socket.
#[derive(Debug)]
pub(in crate::upstream) struct UnixDialer {
    path: PathBuf,
    pub(super) limit: Duration,
    upstream: Arc<str>,
    /// Whether HTTP/2 is spoken.
    pub(super) has_prior_knowledge: bool,
    file: Mutex<SocketFile>,
}

/// The file that the last connection was made to.
#[derive(Debug, Default)]
struct SocketFile {
    /// None: it was not there.
    identity: Option<FileIdentity>,
    /// Set when another file takes its place.
    retire: RetireFlag,
}

/// Tells a new file from an old one at the same path. File systems reuse inode numbers, hence the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    changed: i64,
    changed_nanos: i64,
}

impl UnixDialer {
    pub(in crate::upstream) fn new(path: PathBuf, limit: Duration, upstream: &Arc<str>) -> Self {
        Self {
            path,
            limit,
            upstream: Arc::clone(upstream),
            has_prior_knowledge: false,
            file: Mutex::default(),
        }
    }

    /// Speaks HTTP/2 if `has_prior_knowledge`.
    pub(in crate::upstream) fn with_prior_knowledge(self, has_prior_knowledge: bool) -> Self {
        Self {
            has_prior_knowledge,
            ..self
        }
    }

    /// Stops at `end` if that is before `connect_timeout`.
    pub(in crate::upstream) async fn dial(
        &self,
        end: Option<Instant>,
    ) -> Result<TrackedStream, DialError> {
        let limit = Instant::now() + self.limit;
        let until = end.map_or(limit, |end| end.min(limit));
        let retire = self.look();
        match timeout_at(until, self.connect()).await {
            Ok(Ok(stream)) => {
                let stream = TrackedStream::new(Transport::Unix(stream), &self.upstream);
                let stream = stream.with_prior_knowledge(self.has_prior_knowledge);
                Ok(stream.retired_by(retire))
            }
            Ok(Err(source)) => Err(DialError::Socket {
                path: self.path.clone(),
                fault: self.fault(&source),
                source,
            }),
            Err(_) => Err(DialError::TimedOut {
                host: self.path.display().to_string(),
                limit: self.limit,
                waiting: WaitingFor::SocketQueue,
            }),
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(&self.path).await {
                Err(full) if full.kind() == ErrorKind::WouldBlock => sleep(FULL_QUEUE_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    fn fault(&self, source: &io::Error) -> SocketFault {
        let is_socket = || {
            let metadata = std::fs::metadata(&self.path);
            metadata.is_ok_and(|metadata| metadata.file_type().is_socket())
        };
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => SocketFault::Missing,
            ErrorKind::PermissionDenied => SocketFault::Denied {
                user: rustix::process::geteuid().as_raw(),
            },
            ErrorKind::ConnectionRefused if is_socket() => SocketFault::Stale,
            ErrorKind::ConnectionRefused => SocketFault::NotStream,
            _ if Errno::from_io_error(source) == Some(Errno::PROTOTYPE) => SocketFault::NotStream,
            _ => SocketFault::Other,
        }
    }

    /// Looks at the file; the flag of connections to it.
    fn look(&self) -> RetireFlag {
        let metadata = std::fs::metadata(&self.path).ok();
        let identity = metadata.map(|metadata| FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: metadata.ctime(),
            changed_nanos: metadata.ctime_nsec(),
        });
        let mut file = self.file.lock();
        if identity.is_some() && identity != file.identity {
            if file.identity.is_some() {
                info!(upstream = %self.upstream, socket = %self.path.display(),
                    "the socket's file was replaced: new connections go to the new one");
            }
            file.retire.set();
            *file = SocketFile {
                identity,
                retire: RetireFlag::default(),
            };
        }
        file.retire.clone()
    }

    /// Retires the connections to a socket file that was replaced, until drain.
    pub(in crate::upstream) async fn watch(&self, stop: ShutdownSignal) {
        loop {
            tokio::select! {
                () = stop.draining() => return,
                () = sleep(WATCH_INTERVAL) => {}
            }
            self.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_lack_of_permission_names_the_user() {
        let limit = Duration::from_secs(1);
        let dialer = UnixDialer::new("/run/w.sock".into(), limit, &"main".into());
        for errno in [Errno::ACCESS, Errno::PERM] {
            let text = dialer.fault(&errno.into()).to_string();
            let user = rustix::process::geteuid().as_raw();
            assert!(
                text.contains(&format!("user {user} of this gate")),
                "{text}"
            );
        }
    }
}
