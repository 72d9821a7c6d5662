//! Writes the response to a request whose head hyper never sees. The response is the service's
//! own, and the access log has a line for it as for any other.

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
use crate::listener::BoxError;
use crate::pipeline::Rejection;

/// How long the peer may take to read the response and stop sending. Closing with unread input
/// would make the kernel reset the connection, and the peer would lose the response.
const LINGER: Duration = Duration::from_secs(2);

/// The rejection that the framing guard gave hyper as a read error. None if the content of a
/// request was at fault: that request has a response already.
pub(in crate::listener) fn refused_head(error: &(dyn StdError + 'static)) -> Option<Rejection> {
    let refused = causes(error).find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>()?;
        io.get_ref()?.downcast_ref::<FramingRefusal>()
    })?;
    refused.is_head.then(|| refused.fault.rejection())
}

/// Writes a response without hyper, and closes the connection.
pub(in crate::listener) async fn write<T, B>(mut stream: T, response: Response<B>)
where
    T: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let written = timeout(LINGER, async {
        let (mut head, body) = response.into_parts();
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
        // The body is small and in memory. It is polled to its end, where the access log entry
        // notes that it was sent.
        loop {
            let frame = body.frame().await.and_then(Result::ok);
            let Some(mut data) = frame.and_then(|frame| frame.into_data().ok()) else {
                break;
            };
            stream.write_all_buf(&mut data).await?;
        }
        stream.shutdown().await?;
        let mut discarded = [0; 2048];
        while stream.read(&mut discarded).await? > 0 {}
        Ok::<(), std::io::Error>(())
    });
    // Fails if the peer is slow or has disconnected; its connection has been counted already.
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
