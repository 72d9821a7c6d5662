//! One request on a connection of its own, driven by the caller: logins and probes of the
//! control runtime, which has no pool.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::{DialError, Dialer};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("cannot reach the upstream")]
    Unreachable(#[source] DialError),
    #[error("the connection to the upstream broke")]
    Broken(#[source] hyper::Error),
}

/// Sends `request` and gives what `read` makes of the answer. Has no time limit of its own
/// but the dialer's.
pub(super) async fn call<T>(
    dialer: &Dialer,
    request: Request<Full<Bytes>>,
    read: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> Result<T, CallError> {
    let stream = dialer.dial(None).await.map_err(CallError::Unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(CallError::Broken)?;
    let exchange = async {
        let response = sender.send_request(request).await;
        Ok(read(response.map_err(CallError::Broken)?).await)
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        outcome = &mut exchange => return outcome,
        // How it ended, the exchange is told as well.
        _ = &mut connection => {}
    }
    exchange.await
}
