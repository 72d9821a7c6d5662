//! Explains why a TLS handshake with the upstream failed, and names the configuration key to set.

use std::io;
use std::sync::Arc;

use rustls::{
    AlertDescription, CertificateError, Error as TlsError, InvalidMessage, PeerIncompatible,
};

use super::certificate::CertificateProblem;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error(transparent)]
    Certificate(CertificateProblem),
    #[error(
        "the other end does not speak TLS on this port: if it speaks plain HTTP, \
         upstream.{upstream}.url must begin with http://, or have another port"
    )]
    NotTls { upstream: Arc<str> },
    #[error(
        "the other end closed the connection during the handshake: perhaps it does not speak TLS \
         on the port in upstream.{upstream}.url"
    )]
    Closed {
        upstream: Arc<str>,
        #[source]
        source: io::Error,
    },
    #[error(
        "the other end speaks no version of TLS that this gate does: it must offer TLS 1.2 or 1.3"
    )]
    Version(#[source] io::Error),
    #[error("the other end has no cipher or key exchange in common with this gate")]
    NothingInCommon(#[source] io::Error),
    #[error(
        "the other end does not know the server name it was asked for: set \
         upstream.{upstream}.server_name to one that it serves"
    )]
    UnknownName {
        upstream: Arc<str>,
        #[source]
        source: io::Error,
    },
    #[error("the other end asks for a client certificate, which this gate does not have")]
    WantsCertificate(#[source] io::Error),
    #[error("the handshake broke off")]
    Other(#[source] io::Error),
}

impl HandshakeError {
    pub(in crate::upstream) fn explain(source: io::Error, upstream: &Arc<str>) -> Self {
        let upstream = Arc::clone(upstream);
        let tls = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::InvalidCertificate(CertificateError::Other(other))) => {
                match other.0.downcast_ref::<CertificateProblem>() {
                    Some(problem) => Self::Certificate(problem.clone()),
                    None => Self::Other(source),
                }
            }
            Some(TlsError::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            )) => Self::NotTls { upstream },
            Some(
                TlsError::AlertReceived(AlertDescription::ProtocolVersion)
                | TlsError::PeerIncompatible(
                    PeerIncompatible::ServerDoesNotSupportTls12Or13
                    | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
                ),
            ) => Self::Version(source),
            Some(
                TlsError::AlertReceived(
                    AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity,
                )
                | TlsError::PeerIncompatible(_),
            ) => Self::NothingInCommon(source),
            Some(TlsError::AlertReceived(AlertDescription::UnrecognisedName)) => {
                Self::UnknownName { upstream, source }
            }
            Some(TlsError::AlertReceived(AlertDescription::CertificateRequired)) => {
                Self::WantsCertificate(source)
            }
            None if is_end(source.kind()) => Self::Closed { upstream, source },
            _ => Self::Other(source),
        }
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}
