//! Response bodies: whole, generated, from a file, and faulty ones.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use sha2::{Digest as _, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Sleep, sleep};

const CHUNK: usize = 256 * 1024;
/// Not a power of two, so that a lost or repeated chunk is noticed.
const PATTERN: usize = 251;
/// Longest slow body, which is held in memory; longer ones are not slowed down.
const MAX_SLOW: u64 = 16 * 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(20);

pub(super) enum Body {
    Whole(Option<Bytes>),
    Made {
        block: Bytes,
        left: u64,
    },
    Stored {
        file: Arc<File>,
        at: u64,
        end: u64,
        piece: Option<JoinHandle<io::Result<Bytes>>>,
    },
    /// Chunks with pauses; then the end, an error, or nothing ever again.
    Paced {
        rest: Bytes,
        piece: usize,
        pause: Pin<Box<Sleep>>,
        end: PacedEnd,
        length: Option<u64>,
    },
}

/// How a paced body ends.
pub(super) enum PacedEnd {
    Whole,
    Trailers(Box<HeaderMap>),
    Cut,
    Silence,
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    pub(super) fn made(length: u64) -> Self {
        let block: Vec<u8> = (0u8..=250).cycle().take(PATTERN * 1024).collect();
        Self::Made {
            block: block.into(),
            left: length,
        }
    }

    pub(super) fn stored(file: Arc<File>, length: u64) -> Self {
        Self::Stored {
            file,
            at: 0,
            end: length,
            piece: None,
        }
    }

    fn paced(rest: Bytes, piece: usize, end: PacedEnd, length: Option<u64>) -> Self {
        Self::Paced {
            rest,
            piece: piece.max(1),
            pause: Box::pin(sleep(Duration::ZERO)),
            end,
            length,
        }
    }

    /// Half of the body, then the connection ends. Of a body that is not in memory, half of the first
    /// chunk.
    pub(super) fn cut(self) -> Self {
        let length = self.left();
        let mut half = self.beginning();
        half.truncate(half.len().div_ceil(2));
        let piece = half.len();
        Self::paced(half, piece, PacedEnd::Cut, length)
    }

    /// Nothing of the body, ever.
    pub(super) fn silent(self) -> Self {
        let length = self.left();
        Self::paced(Bytes::new(), 1, PacedEnd::Silence, length)
    }

    /// The whole body, a few bytes at a time.
    pub(super) fn slow(self) -> Self {
        match self {
            Self::Whole(Some(bytes)) => {
                let length = bytes.len() as u64;
                // Five chunks, so that a token in the body is split.
                let piece = (bytes.len() / 5).clamp(1, 4096);
                Self::paced(bytes, piece, PacedEnd::Whole, Some(length))
            }
            Self::Made { block, left } if left <= MAX_SLOW => {
                let bytes = block.iter().copied().cycle();
                let bytes: Vec<u8> = bytes.take(usize::try_from(left).unwrap_or(0)).collect();
                Self::paced(bytes.into(), 4096, PacedEnd::Whole, Some(left))
            }
            other => other,
        }
    }

    /// The whole body without a length, and a trailer with its digest.
    pub(super) fn with_trailers(self) -> Self {
        let Self::Whole(Some(bytes)) = self else {
            return self;
        };
        let mut trailers = HeaderMap::new();
        let digest = super::hex(&Sha256::digest(&bytes));
        if let Ok(digest) = digest.parse() {
            trailers.insert("x-emulator-sha256", digest);
        }
        let piece = bytes.len();
        Self::paced(bytes, piece, PacedEnd::Trailers(Box::new(trailers)), None)
    }

    /// The number of bytes left, if known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Whole(bytes) => Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Made { left, .. } => Some(*left),
            Self::Stored { at, end, .. } => Some(end - at),
            Self::Paced { length, .. } => *length,
        }
    }

    fn beginning(self) -> Bytes {
        match self {
            Self::Whole(bytes) => bytes.unwrap_or_default(),
            Self::Made { block, left } => block.slice(..block.len().min(size(left))),
            Self::Paced { rest, .. } => rest,
            Self::Stored { end, .. } => vec![0; CHUNK.min(size(end))].into(),
        }
    }
}

fn size(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

fn read(file: &File, at: u64, length: usize) -> io::Result<Bytes> {
    let mut piece = vec![0; length];
    file.read_exact_at(&mut piece, at)?;
    Ok(piece.into())
}

type Piece = Poll<Option<io::Result<Frame<Bytes>>>>;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Context<'_>) -> Piece {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Made { block, left } => {
                let length = block.len().min(size(*left));
                *left -= length as u64;
                Poll::Ready((length > 0).then(|| Ok(Frame::data(block.slice(..length)))))
            }
            Self::Stored {
                file,
                at,
                end,
                piece,
            } => {
                if *at == *end {
                    return Poll::Ready(None);
                }
                let reading = piece.get_or_insert_with(|| {
                    let (file, at) = (Arc::clone(file), *at);
                    let length = CHUNK.min(size(*end - at));
                    spawn_blocking(move || read(&file, at, length))
                });
                let done = ready!(Pin::new(reading).poll(task)).map_err(io::Error::other);
                *piece = None;
                let bytes = done.and_then(|read| read);
                *at += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                Poll::Ready(Some(bytes.map(Frame::data)))
            }
            Self::Paced {
                rest,
                piece,
                pause,
                end,
                ..
            } => {
                // Also before the end, so that the chunks so far are on the wire when the
                // connection is cut.
                ready!(pause.as_mut().poll(task));
                pause.as_mut().reset(tokio::time::Instant::now() + PAUSE);
                if !rest.is_empty() {
                    let next = rest.split_to((*piece).min(rest.len()));
                    return Poll::Ready(Some(Ok(Frame::data(next))));
                }
                match std::mem::replace(end, PacedEnd::Whole) {
                    PacedEnd::Whole => Poll::Ready(None),
                    PacedEnd::Trailers(trailers) => {
                        Poll::Ready(Some(Ok(Frame::trailers(*trailers))))
                    }
                    PacedEnd::Cut => Poll::Ready(Some(Err(io::Error::other("cut on purpose")))),
                    PacedEnd::Silence => {
                        *end = PacedEnd::Silence;
                        Poll::Pending
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left() == Some(0) && !matches!(self, Self::Paced { .. })
    }

    fn size_hint(&self) -> SizeHint {
        self.left()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
