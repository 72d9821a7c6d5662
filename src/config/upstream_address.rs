//! Where an upstream's server is, and by what it is trusted.

use std::fmt;
use std::path::PathBuf;

use crate::secret::SecretSource;

/// `https://host:port` or `http://host:port`, nothing after it; or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BaseAddress {
    /// False with a socket.
    pub tls: bool,
    /// A name, an IPv4 address, or an IPv6 address without brackets. With a socket: `localhost`.
    pub host: String,
    pub port: u16,
    /// The Unix socket to connect to in place of host and port; requests over it are plain HTTP.
    pub socket: Option<PathBuf>,
}

impl BaseAddress {
    /// The address of a Unix socket.
    pub fn of_socket(path: PathBuf) -> Self {
        Self {
            tls: false,
            host: "localhost".to_owned(),
            port: 80,
            socket: Some(path),
        }
    }

    /// Host and port as `Host` and `CONNECT` write them.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for BaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.socket, self.tls) {
            (Some(path), _) => write!(f, "unix:{}", path.display()),
            (None, true) => write!(f, "https://{}", self.authority()),
            (None, false) => write!(f, "http://{}", self.authority()),
        }
    }
}

/// How an upstream's certificate is verified. Verification cannot be switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The public authorities compiled into this program.
    PublicAuthorities,
    /// A PEM file of private authorities; read again when it changes.
    Authorities(PathBuf),
    /// SHA-256 of the key (SubjectPublicKeyInfo, DER) that the upstream must show.
    Pins(Vec<[u8; 32]>),
}

/// Which version of HTTP is spoken with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2Mode {
    /// HTTP/1.1.
    Never,
    /// Over TLS what the server chooses by ALPN; else HTTP/1.1.
    Auto,
    /// HTTP/2: over TLS by ALPN, else with prior knowledge (RFC 9113, 3.3).
    Always,
}

impl Http2Mode {
    /// As the key `http2` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Auto => "auto",
            Self::Always => "always",
        }
    }
}

/// The HTTP proxy between the gate and an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    /// None: the proxy is used without a login.
    pub login: Option<ProxyLogin>,
}

/// The gateway's own login at a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyLogin {
    pub username: String,
    pub password: SecretSource,
}

impl fmt::Display for ProxyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", authority(&self.host, self.port))
    }
}

fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}
