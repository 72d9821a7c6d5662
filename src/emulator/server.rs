//! Sockets of the pretend Webapp and of its control port.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::control;
use super::counts::add;
use super::webapp::Webapp;
use crate::accept_backoff::AcceptBackoff;
use crate::lifecycle::{ShutdownSignal, TaskScope};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(60);
const CONNECTIONS: usize = 10_000;

/// What a listening task needs.
#[derive(Clone)]
pub(super) struct Ears {
    pub webapp: Arc<Webapp>,
    pub tls: Option<TlsAcceptor>,
    pub scope: TaskScope,
}

/// Serves the Webapp's protocol until drain.
pub(super) async fn listen(listener: TcpListener, ears: Ears) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // A place first: beyond the limit, connections wait in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Some(stream) = accept(&listener, &ears.scope.stop).await else {
            return;
        };
        add(&ears.webapp.state.counts.connections);
        if ears.webapp.state.faults.now().refuse_connections {
            continue;
        }
        let mine = ears.clone();
        ears.scope.spawn("emulator connection", async move {
            let _place = place;
            let stop = mine.scope.stop.clone();
            tokio::select! {
                () = serve(stream, mine) => {}
                () = stop.aborting() => {}
            }
        });
    }
}

/// Serves the control port until drain.
pub(super) async fn listen_for_control(listener: TcpListener, ears: Ears) {
    while let Some(stream) = accept(&listener, &ears.scope.stop).await {
        let (webapp, stop) = (Arc::clone(&ears.webapp), ears.scope.stop.clone());
        ears.scope.spawn("emulator control", async move {
            let service = service_fn(move |request| {
                let webapp = Arc::clone(&webapp);
                async move { Ok::<_, Infallible>(control::answer(&webapp.state, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            tokio::select! {
                end = connection.as_mut() => return report(end),
                () = stop.draining() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                end = connection => report(end),
                () = stop.aborting() => {}
            }
        });
    }
}

/// Waits for the next connection; None at drain.
async fn accept(listener: &TcpListener, stop: &ShutdownSignal) -> Option<TcpStream> {
    let mut backoff = AcceptBackoff::new("emulator");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    backoff.succeeded();
                    // Responses are small and must not wait to fill a packet.
                    let _ = stream.set_nodelay(true);
                    return Some(stream);
                }
                Err(error) => backoff.failed(&error).await,
            },
            () = stop.draining() => return None,
        }
    }
}

async fn serve(stream: TcpStream, ears: Ears) {
    let Some(acceptor) = &ears.tls else {
        return converse(stream, ears).await;
    };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, ears).await,
        Ok(Err(error)) => debug!(%error, "emulator: TLS handshake failed"),
        Err(_) => debug!("emulator: TLS handshake took too long"),
    }
}

async fn converse<S>(stream: S, ears: Ears)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (webapp, stop) = (ears.webapp, ears.scope.stop);
    let service = service_fn(|request| {
        let webapp = Arc::clone(&webapp);
        async move { webapp.handle(request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .title_case_headers(true)
        // The pretend Webapp's clock may be wrong; it writes its own dates.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        end = connection.as_mut() => return report(end),
        () = stop.draining() => connection.as_mut().graceful_shutdown(),
    }
    report(connection.await);
}

fn report(end: Result<(), hyper::Error>) {
    if let Err(error) = end {
        debug!(%error, "emulator: connection ended early");
    }
}
