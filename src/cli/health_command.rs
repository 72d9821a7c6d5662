//! `tollgate health`: queries the running gateway's health, for health checks of containers.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Error;
use crate::config;

/// For the whole query; a running gateway answers in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(3);
const LONGEST_ANSWER: u64 = 64 * 1024;

/// The endpoint to query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HealthQuestion {
    /// Whether the program answers.
    Alive,
    /// Whether the next request would succeed.
    Ready,
}

impl HealthQuestion {
    fn path(self) -> &'static str {
        match self {
            Self::Alive => "/healthz",
            Self::Ready => "/readyz",
        }
    }
}

/// Prints one line; fails if the answer is no, or does not come within three seconds.
pub(super) fn run(
    file: &Path,
    question: HealthQuestion,
    out: &mut impl Write,
) -> Result<ExitCode, Error> {
    let operator = operator(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = async { timeout(TIMEOUT, ask(reachable(operator), question)).await };
    let answer = runtime.block_on(answer);
    let answer = answer.unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no response within {TIMEOUT:?}"),
        ))
    });
    let (is_good, text) = match answer {
        Ok((status, text)) => (status == 200, text),
        Err(error) => (false, format!("no gate answers at {operator}: {error}")),
    };
    writeln!(out, "{}", text.trim_end().replace('\n', "; "))?;
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The operator's address in this file. The file may have problems now that it did not have when
/// the gateway started.
fn operator(file: &Path) -> Result<SocketAddr, Error> {
    match config::load(file) {
        Ok(loaded) => Ok(loaded.config.operator.address),
        Err(problems) => match &problems.rest {
            Some(rest) => Ok(rest.0.operator.address),
            None => Err(problems.into()),
        },
    }
}

/// An address that a client can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The response's status and text.
async fn ask(address: SocketAddr, question: HealthQuestion) -> io::Result<(u16, String)> {
    let mut tcp = TcpStream::connect(address).await?;
    let path = question.path();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tcp.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ");
    let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
    match (status, answer.split_once("\r\n\r\n")) {
        (Some(status), Some((_, text))) => Ok((status, text.to_owned())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what answers there is no gate",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_checked_at_loopback() {
        for (bound, asked) in [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.7:1", "10.0.0.7:1"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap()).to_string(), asked);
        }
    }
}
