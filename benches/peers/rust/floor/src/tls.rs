//! One connection's TLS, on bytes alone.
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::ServerConfig;
use std::sync::Arc;

pub struct Broken;

pub fn settings(cert: &str, key: &str) -> Arc<ServerConfig> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(cert).unwrap().map(|c| c.unwrap()).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    Arc::new(config)
}

/// Seals `data` behind what `out` holds.
pub fn encrypt(tls: &mut UnbufferedServerConnection, data: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
    let need = data.len() + (data.len() / 16384 + 2) * 64;
    out.reserve(need);
    let UnbufferedStatus { state, .. } = tls.process_tls_records(&mut []);
    let ConnectionState::WriteTraffic(mut writer) = state.map_err(|_| Broken)? else {
        return Err(Broken);
    };
    let used = out.len();
    // SAFETY: bytes are written by encrypt before set_len covers them
    let spare = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().add(used), need) };
    let n = writer.encrypt(data, spare).map_err(|_| Broken)?;
    unsafe { out.set_len(used + n) };
    Ok(())
}

/// Takes records from `buf`: their content to `plain`, what TLS itself has to say to `out`.
/// How many bytes were used, and whether the peer is closing.
pub fn decrypt(
    tls: &mut UnbufferedServerConnection,
    buf: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(usize, bool), Broken> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(&mut buf[used..]);
        let mut end = None;
        match state.map_err(|_| Broken)? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(|_| Broken)?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut e) => {
                let at = out.len();
                out.resize(at + 2048, 0);
                let n = match e.encode(&mut out[at..]) {
                    Ok(n) => n,
                    Err(EncodeError::InsufficientSize(size)) => {
                        out.resize(at + size.required_size, 0);
                        e.encode(&mut out[at..]).map_err(|_| Broken)?
                    }
                    Err(_) => return Err(Broken),
                };
                out.truncate(at + n);
            }
            ConnectionState::TransmitTlsData(t) => t.done(),
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => end = Some(false),
            ConnectionState::PeerClosed | ConnectionState::Closed => end = Some(true),
            _ => return Err(Broken),
        }
        used += discard;
        if let Some(closing) = end {
            return Ok((used, closing));
        }
    }
}
