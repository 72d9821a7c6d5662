//! Requests that are refused before the service has seen them: their answers are the
//! service's own all the same, and leave a line in the log as any other.

use std::error::Error as StdError;
use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::framing_guard::FramingRefusal;
use crate::clock;
use crate::error_chain::causes;
use crate::listener::service::BoxError;
use crate::pipeline::Rejection;

/// For the peer to take the answer and to stop sending: closing with unread input would make
/// the kernel reset the connection and take the answer with it.
const LINGER: Duration = Duration::from_secs(2);

/// What the guard has refused when hyper ended the connection because of it. None when the
/// content of a request was at fault: that request has an answer.
pub(in crate::listener) fn refused_head(error: &(dyn StdError + 'static)) -> Option<Rejection> {
    let refused = causes(error).find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>()?;
        io.get_ref()?.downcast_ref::<FramingRefusal>()
    })?;
    refused.is_head.then(|| refused.fault.rejection())
}

/// Writes an answer that hyper has no part in, and closes.
pub(in crate::listener) async fn write<T, B>(mut stream: T, answer: Response<B>)
where
    T: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let written = timeout(LINGER, async {
        let (mut head, body) = answer.into_parts();
        let length = body.size_hint().exact().unwrap_or(0);
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("close"));
        let now = UNIX_EPOCH + Duration::from_secs(clock::unix_seconds().try_into().unwrap_or(0));
        if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(now)) {
            head.headers.insert(DATE, date);
        }
        stream
            .write_all(&head_text(head.status, &head.headers))
            .await?;
        let mut body = pin!(body);
        // The body is small, and here; its record says that it was sent when it is at its end.
        loop {
            let frame = body.frame().await.and_then(Result::ok);
            let Some(mut piece) = frame.and_then(|frame| frame.into_data().ok()) else {
                break;
            };
            stream.write_all_buf(&mut piece).await?;
        }
        stream.shutdown().await?;
        let mut bin = [0; 2048];
        while stream.read(&mut bin).await? > 0 {}
        Ok::<(), std::io::Error>(())
    });
    // The peer is slow or gone; that is known already.
    let _ = written.await;
}

fn head_text(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in headers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text
}
