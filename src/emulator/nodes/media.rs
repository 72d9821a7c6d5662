//! Media: uploads go to unnamed temporary files of any size, downloads stream from them.
//! `generated-<length>` streams that many bytes without an upload.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

use super::super::hex;
use super::super::node_call::NodeCall;
use super::super::node_reply::{Origin, Reply};
use super::super::reply_body::Body;
use crate::profiles::whatsapp::ErrorCode;

const ORIGIN: Origin = Origin::Coreapp;
const BUFFER: usize = 256 * 1024;

/// Most bytes stored in all; beyond that the oldest media are deleted. A single larger one is stored.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Most stored media; each one is an open file.
const MAX_FILES: usize = 256;

/// Longest wait for the next frame of an upload.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(in super::super) struct Media {
    store: Mutex<MediaStore>,
}

#[derive(Default)]
struct MediaStore {
    stored: HashMap<String, StoredMedia>,
    oldest_first: VecDeque<String>,
    bytes: u64,
}

#[derive(Clone)]
struct StoredMedia {
    file: Arc<File>,
    length: u64,
    content_type: String,
}

/// Why an upload was not stored.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("upload is larger than allowed")]
    TooLarge,
    #[error("upload stalled")]
    Slow,
    #[error("upload broke off")]
    Broken(#[source] hyper::Error),
    #[error("cannot write the upload to a temporary file")]
    Disk(#[source] io::Error),
}

impl Media {
    pub(in super::super) async fn respond(&self, call: NodeCall) -> Reply {
        match (call.verb(), call.path.get(2)) {
            ("POST", _) => self.upload(call).await,
            ("DELETE", Some(id)) => self.delete(id),
            (_, Some(id)) => self.download(id),
            (_, None) => not_found(),
        }
    }

    async fn upload(&self, call: NodeCall) -> Reply {
        let limit = match call.switches.media_limit {
            0 => u64::MAX,
            limit => limit,
        };
        let content_type = content_type(&call.headers);
        match receive(call.body, limit).await {
            Ok((_, 0)) => Reply::bad(ORIGIN, ErrorCode::ParameterMissing, "Media is empty"),
            Ok((file, length)) => {
                let id = uuid();
                self.keep(
                    id.clone(),
                    StoredMedia {
                        file,
                        length,
                        content_type,
                    },
                );
                Reply::ok(ORIGIN, json!({ "media": [{ "id": id }] }))
            }
            Err(failed) => failed.reply(),
        }
    }

    fn keep(&self, id: String, stored: StoredMedia) {
        let mut store = self.store.lock();
        store.bytes += stored.length;
        store.oldest_first.push_back(id.clone());
        store.stored.insert(id, stored);
        while store.oldest_first.len() > 1
            && (store.bytes > MAX_BYTES || store.oldest_first.len() > MAX_FILES)
        {
            if let Some(oldest) = store.oldest_first.pop_front() {
                store.remove(&oldest);
            }
        }
    }

    fn download(&self, id: &str) -> Reply {
        let made = id.strip_prefix("generated-").map(str::parse);
        if let Some(Ok(length)) = made {
            let kind = "application/octet-stream";
            return Reply::typed(ORIGIN, StatusCode::OK, kind, Body::made(length));
        }
        let found = self.store.lock().stored.get(id).cloned();
        let Some(found) = found else {
            return not_found();
        };
        let body = Body::stored(found.file, found.length);
        Reply::typed(ORIGIN, StatusCode::OK, &found.content_type, body)
    }

    fn delete(&self, id: &str) -> Reply {
        let mut store = self.store.lock();
        store.oldest_first.retain(|stored_id| stored_id != id);
        if store.remove(id) {
            Reply::ok(ORIGIN, json!({}))
        } else {
            not_found()
        }
    }
}

impl MediaStore {
    fn remove(&mut self, id: &str) -> bool {
        let Some(stored) = self.stored.remove(id) else {
            return false;
        };
        self.bytes -= stored.length;
        true
    }
}

impl UploadError {
    fn reply(self) -> Reply {
        let (status, code) = match &self {
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ParameterInvalid),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, ErrorCode::InvalidRequest),
            Self::Broken(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Self::Disk(source) => {
                warn!(error = %source, "emulator: {self}");
                (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal)
            }
        };
        Reply::error(ORIGIN, status, code, &self.to_string())
    }
}

async fn receive(mut body: Incoming, limit: u64) -> Result<(Arc<File>, u64), UploadError> {
    // Refused before the body is read: a client that sent `Expect` then sends none.
    if http_body::Body::size_hint(&body).lower() > limit {
        return Err(UploadError::TooLarge);
    }
    let file = spawn_blocking(tempfile::tempfile);
    let file = file
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(UploadError::Disk)?;
    let mut file = BufWriter::with_capacity(BUFFER, tokio::fs::File::from_std(file));
    let mut length = 0u64;
    while let Some(frame) = timeout(READ_TIMEOUT, body.frame())
        .await
        .map_err(|_| UploadError::Slow)?
    {
        let Ok(data) = frame.map_err(UploadError::Broken)?.into_data() else {
            continue; // trailers
        };
        length += data.len() as u64;
        if length > limit {
            return Err(UploadError::TooLarge);
        }
        file.write_all(&data).await.map_err(UploadError::Disk)?;
    }
    file.flush().await.map_err(UploadError::Disk)?;
    let file = file.into_inner().into_std().await;
    Ok((Arc::new(file), length))
}

fn content_type(headers: &HeaderMap) -> String {
    let sent = headers.get(header::CONTENT_TYPE);
    let sent = sent.and_then(|value| value.to_str().ok());
    sent.unwrap_or("application/octet-stream").to_owned()
}

/// 404 without a body, as documented.
fn not_found() -> Reply {
    Reply::empty(ORIGIN, StatusCode::NOT_FOUND)
}

fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let all = hex(&bytes);
    let (a, b, c, d, e) = (
        &all[..8],
        &all[8..12],
        &all[12..16],
        &all[16..20],
        &all[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}
