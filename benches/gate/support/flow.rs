//! Async HTTP/1.1 over one TLS connection; many of them are a load.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::wire::whole;

pub(crate) struct Flow {
    stream: TlsStream<TcpStream>,
    kept: Vec<u8>,
}

impl Flow {
    /// `index` spreads connections over loopback's addresses: one alone has too few ports.
    pub(crate) async fn open(port: u16, client: &Arc<ClientConfig>, index: usize) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        let last = u8::try_from(2 + index % 8).unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, last), 0).into())
            .unwrap();
        let tcp = socket
            .connect((Ipv4Addr::LOCALHOST, port).into())
            .await
            .unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::clone(client)).connect(name, tcp);
        Self {
            stream: stream.await.unwrap(),
            kept: Vec::new(),
        }
    }

    /// The status of the response; its body is read to the end.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.kept.clear();
        loop {
            if self.stream.read_buf(&mut self.kept).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some((status, _)) = whole(&self.kept) {
                return Ok(status);
            }
        }
    }
}
