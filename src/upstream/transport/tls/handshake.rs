//! Explains why a TLS handshake with the upstream failed, and names the configuration key to set.

use std::io;
use std::sync::Arc;

use rustls::{
    AlertDescription, CertificateError, Error as TlsError, InvalidMessage, PeerIncompatible,
};

use super::certificate::CertificateProblem;
use super::client_certificate::{CertificateDates, OfferedCertificate};
use crate::clock;

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
    #[error(
        "the other end asks for a client certificate: set upstream.{upstream}.client_certificate and \
         client_key to one that it accepts"
    )]
    WantsCertificate {
        upstream: Arc<str>,
        #[source]
        source: io::Error,
    },
    #[error(
        "the other end refuses the certificate in upstream.{upstream}.client_certificate (\"{subject}\", \
         which {dates})"
    )]
    RefusesCertificate {
        upstream: Arc<str>,
        subject: String,
        dates: CertificateDates,
        #[source]
        source: io::Error,
    },
    #[error(
        "the other end does not choose HTTP/2 (h2 in ALPN): set upstream.{upstream}.http2 to \"auto\" or \
         \"never\""
    )]
    NotHttp2 { upstream: Arc<str> },
    #[error("the handshake broke off")]
    Other(#[source] io::Error),
}

impl HandshakeError {
    pub(in crate::upstream) fn explain(
        source: io::Error,
        upstream: &Arc<str>,
        offered: &OfferedCertificate,
    ) -> Self {
        let upstream = Arc::clone(upstream);
        let tls = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::AlertReceived(alert)) if is_about_certificate(*alert, offered) => {
                Self::about_certificate(source, &upstream, offered)
            }
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
            Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                Self::NotHttp2 { upstream }
            }
            Some(TlsError::AlertReceived(AlertDescription::UnrecognisedName)) => {
                Self::UnknownName { upstream, source }
            }
            None if is_end(source.kind()) => Self::Closed { upstream, source },
            _ => Self::Other(source),
        }
    }

    /// What an alert that came after the handshake says about the gate's certificate: TLS 1.3 checks it
    /// last. Any other error is returned as it is.
    pub(in crate::upstream) fn explain_late(
        source: io::Error,
        upstream: &Arc<str>,
        offered: &OfferedCertificate,
    ) -> io::Error {
        let tls = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::AlertReceived(alert)) if is_about_certificate(*alert, offered) => {
                let kind = source.kind();
                io::Error::new(kind, Self::about_certificate(source, upstream, offered))
            }
            _ => source,
        }
    }

    /// Whether it concerns the gate's own certificate.
    pub(in crate::upstream) fn is_about_own_certificate(&self) -> bool {
        matches!(
            self,
            Self::WantsCertificate { .. } | Self::RefusesCertificate { .. }
        )
    }

    fn about_certificate(
        source: io::Error,
        upstream: &Arc<str>,
        offered: &OfferedCertificate,
    ) -> Self {
        let upstream = Arc::clone(upstream);
        match &offered.certificate {
            None => Self::WantsCertificate { upstream, source },
            Some(certificate) => Self::RefusesCertificate {
                upstream,
                subject: certificate.subject.clone(),
                dates: certificate.dates(clock::unix_seconds()),
                source,
            },
        }
    }
}

/// Whether the upstream has asked for a certificate, and the alert says what it thinks of the response.
/// With TLS 1.2 the alert for none is an ordinary handshake failure.
fn is_about_certificate(alert: AlertDescription, offered: &OfferedCertificate) -> bool {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => true,
        Alert::HandshakeFailure => offered.was_asked() && offered.certificate.is_none(),
        // An authority that was made anew under its old name fails on the signature.
        Alert::DecryptError => offered.was_asked() && offered.certificate.is_some(),
        Alert::NoCertificate
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => offered.was_asked(),
        _ => false,
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}
