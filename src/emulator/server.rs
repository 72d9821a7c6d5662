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
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::control;
use super::counts::add;
use super::webapp::Webapp;
use crate::lifecycle::{ShutdownSignal, TaskSet};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(60);
const CONNECTIONS: usize = 10_000;

/// What a listening task needs.
#[derive(Clone)]
pub(super) struct Ears {
    pub webapp: Arc<Webapp>,
    pub tls: Option<TlsAcceptor>,
    pub tasks: TaskSet,
    pub stop: ShutdownSignal,
}

/// Serves the Webapp's protocol until drain.
pub(super) async fn listen(listener: TcpListener, ears: Ears) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // A place first: beyond the limit, connections wait in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Some(stream) = accept(&listener, &ears.stop).await else {
            return;
        };
        add(&ears.webapp.counts.connections);
        if ears.webapp.faults.now().refuse_connections {
            continue;
        }
        let mine = ears.clone();
        ears.tasks.spawn("emulator connection", async move {
            let _place = place;
            let stop = mine.stop.clone();
            tokio::select! {
                () = serve(stream, mine) => {}
                () = stop.aborting() => {}
            }
        });
    }
}

/// Serves the control port until drain.
pub(super) async fn listen_for_control(listener: TcpListener, ears: Ears) {
    while let Some(stream) = accept(&listener, &ears.stop).await {
        let (webapp, stop) = (Arc::clone(&ears.webapp), ears.stop.clone());
        ears.tasks.spawn("emulator control", async move {
            let service = service_fn(move |request| {
                let webapp = Arc::clone(&webapp);
                async move { Ok::<_, Infallible>(control::answer(&webapp, request).await) }
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

async fn accept(listener: &TcpListener, stop: &ShutdownSignal) -> Option<TcpStream> {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Answers are small; waiting to fill a packet only slows them.
                    let _ = stream.set_nodelay(true);
                    return Some(stream);
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must end first.
                    warn!(%error, "emulator cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
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
    let (webapp, stop) = (ears.webapp, ears.stop);
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
