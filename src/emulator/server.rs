//! The sockets of the emulated Webapp and of its control port.

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
pub(super) struct ListenContext {
    pub webapp: Arc<Webapp>,
    pub tls: Option<TlsAcceptor>,
    pub scope: TaskScope,
}

/// Serves the Webapp's protocol until drain.
pub(super) async fn listen(listener: TcpListener, context: ListenContext) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Connections beyond the limit wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let Some(stream) = accept(&listener, &context.scope.stop).await else {
            return;
        };
        add(&context.webapp.state.counts.connections);
        if context.webapp.state.faults.now().refuse_connections {
            continue;
        }
        let own = context.clone();
        context.scope.spawn("emulator connection", async move {
            let _permit = permit;
            let stop = own.scope.stop.clone();
            tokio::select! {
                () = serve(stream, own) => {}
                () = stop.aborting() => {}
            }
        });
    }
}

/// Serves the control port until drain.
pub(super) async fn listen_for_control(listener: TcpListener, context: ListenContext) {
    while let Some(stream) = accept(&listener, &context.scope.stop).await {
        let (webapp, stop) = (Arc::clone(&context.webapp), context.scope.stop.clone());
        context.scope.spawn("emulator control", async move {
            let service = service_fn(move |request| {
                let webapp = Arc::clone(&webapp);
                async move { Ok::<_, Infallible>(control::response(&webapp.state, request).await) }
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

async fn serve(stream: TcpStream, context: ListenContext) {
    let Some(acceptor) = &context.tls else {
        return serve_http(stream, context).await;
    };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve_http(stream, context).await,
        Ok(Err(error)) => debug!(%error, "emulator: TLS handshake failed"),
        Err(_) => debug!("emulator: TLS handshake took too long"),
    }
}

async fn serve_http<S>(stream: S, context: ListenContext)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (webapp, stop) = (context.webapp, context.scope.stop);
    let service = service_fn(|request| {
        let webapp = Arc::clone(&webapp);
        async move { webapp.handle(request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .title_case_headers(true)
        // The emulated clock may be wrong, so the nodes write `Date` themselves.
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
