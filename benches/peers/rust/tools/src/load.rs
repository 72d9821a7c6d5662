//! Load tool for what wrk and h2load do not do: connection churn (full / resumed handshakes),
//! holding idle connections, and a fixed open-loop rate with latencies taken from the due time.
//!   pb-load churn --target A --n N --c C --resume 0|1 --token T
//!   pb-load idle  --target A --n N --token T            (prints READY, ends when stdin closes)
//!   pb-load rate  --target A --rps R --c C --secs S --token T [--plain 1]
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{client::Resumption, ClientConfig, HandshakeKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;

#[derive(Debug)]
struct NoVerify(Arc<rustls::crypto::CryptoProvider>);
impl rustls::client::danger::ServerCertVerifier for NoVerify {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Keeps every ticket (rustls' own store keeps 8), so that a burst of connections can all resume.
#[derive(Debug, Default)]
struct Tickets(std::sync::Mutex<Vec<rustls::client::Tls13ClientSessionValue>>);
impl rustls::client::ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: rustls::client::Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, v: rustls::client::Tls13ClientSessionValue) {
        self.0.lock().unwrap().push(v);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.lock().unwrap().pop()
    }
}

fn arg(name: &str) -> Option<String> {
    let mut it = std::env::args();
    while let Some(a) = it.next() {
        if a == name {
            return it.next();
        }
    }
    None
}
fn num(name: &str, d: u64) -> u64 {
    arg(name).map(|v| v.parse().unwrap()).unwrap_or(d)
}

async fn tcp(target: SocketAddr, i: usize) -> std::io::Result<tokio::net::TcpStream> {
    // spread over loopback source addresses so that ephemeral ports never run out
    let s = TcpSocket::new_v4()?;
    let src: SocketAddr = format!("127.0.0.{}:0", 2 + i % 8).parse().unwrap();
    let one = 1i32;
    unsafe { libc::setsockopt(s.as_raw_fd(), libc::SOL_IP, 24, &one as *const _ as _, 4) }; // IP_BIND_ADDRESS_NO_PORT
    s.bind(src)?;
    let t = s.connect(target).await?;
    t.set_nodelay(true)?;
    Ok(t)
}

async fn roundtrip<S: AsyncRead + AsyncWrite + Unpin>(
    s: &mut S,
    req: &[u8],
    buf: &mut Vec<u8>,
) -> std::io::Result<(u16, bool)> {
    s.write_all(req).await?;
    s.flush().await?;
    buf.clear();
    loop {
        let n = s.read_buf(buf).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut hs = [httparse::EMPTY_HEADER; 48];
        let mut r = httparse::Response::new(&mut hs);
        if let Ok(httparse::Status::Complete(h)) = r.parse(buf) {
            let mut cl = None;
            let mut te = false;
            let mut close = false;
            for x in r.headers.iter() {
                if x.name.eq_ignore_ascii_case("content-length") {
                    cl = std::str::from_utf8(x.value).unwrap().trim().parse::<usize>().ok();
                }
                if x.name.eq_ignore_ascii_case("transfer-encoding") {
                    te = true;
                }
                if x.name.eq_ignore_ascii_case("connection") && x.value.eq_ignore_ascii_case(b"close") {
                    close = true;
                }
            }
            let code = r.code.unwrap();
            match cl {
                Some(l) if buf.len() >= h + l => return Ok((code, close)),
                Some(_) => {}
                None if te => {
                    if buf.ends_with(b"0\r\n\r\n") {
                        return Ok((code, close));
                    }
                }
                None => return Ok((code, close)),
            }
        }
    }
}

fn main() {
    let mode = std::env::args().nth(1).expect("mode");
    let target: SocketAddr = arg("--target").unwrap_or("127.0.0.1:8443".into()).parse().unwrap();
    let token = arg("--token").unwrap_or_default();
    let path = arg("--path").unwrap_or("/v1/groups".into());
    let resume = num("--resume", 0) == 1;
    let req: Arc<Vec<u8>> = Arc::new(
        format!("GET {path} HTTP/1.1\r\nHost: app.example.test\r\nUser-Agent: pb-load/1\r\nAccept: application/json\r\nAccept-Encoding: gzip, br\r\nX-Request-Id: 0123456789abcdef0123456789abcdef\r\nAuthorization: Bearer {token}\r\n\r\n")
            .into_bytes(),
    );
    let mut prov = rustls::crypto::aws_lc_rs::default_provider();
    prov.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let prov = Arc::new(prov);
    let mut cfg = ClientConfig::builder_with_provider(prov.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoVerify(prov)))
        .with_no_client_auth();
    cfg.alpn_protocols = vec![b"http/1.1".to_vec()];
    cfg.resumption = if resume { Resumption::store(Arc::new(Tickets::default())) } else { Resumption::disabled() };
    let conn = tokio_rustls::TlsConnector::from(Arc::new(cfg));
    let name = ServerName::try_from("app.example.test").unwrap();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&rt, async move {
        match mode.as_str() {
            "churn" => {
                let n = num("--n", 2000) as usize;
                let c = num("--c", 16) as usize;
                let next = std::rc::Rc::new(std::cell::Cell::new(0usize));
                let st = std::rc::Rc::new(std::cell::RefCell::new((0u64, 0u64, 0u64, 0u64))); // full, resumed, non200, err
                let t0 = Instant::now();
                let mut hs = vec![];
                for _ in 0..c {
                    let (next, st, conn, name, req) = (next.clone(), st.clone(), conn.clone(), name.clone(), req.clone());
                    hs.push(tokio::task::spawn_local(async move {
                        let mut buf = Vec::with_capacity(16384);
                        loop {
                            let i = next.get();
                            if i >= n {
                                break;
                            }
                            next.set(i + 1);
                            let r: std::io::Result<(bool, u16)> = async {
                                let t = tcp(target, i).await?;
                                let mut s = conn.connect(name.clone(), t).await?;
                                let (code, _) = roundtrip(&mut s, &req, &mut buf).await?;
                                let res = s.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                                let _ = s.shutdown().await;
                                Ok((res, code))
                            }
                            .await;
                            let mut g = st.borrow_mut();
                            match r {
                                Ok((res, code)) => {
                                    if res {
                                        g.1 += 1
                                    } else {
                                        g.0 += 1
                                    }
                                    if code != 200 {
                                        g.2 += 1
                                    }
                                }
                                Err(_) => g.3 += 1,
                            }
                        }
                    }));
                }
                for h in hs {
                    let _ = h.await;
                }
                let g = st.borrow();
                println!(
                    "{{\"n\":{n},\"secs\":{:.4},\"full\":{},\"resumed\":{},\"non200\":{},\"err\":{}}}",
                    t0.elapsed().as_secs_f64(),
                    g.0,
                    g.1,
                    g.2,
                    g.3
                );
            }
            "idle" => {
                let n = num("--n", 1000) as usize;
                let held = std::rc::Rc::new(std::cell::RefCell::new(Vec::with_capacity(n)));
                let next = std::rc::Rc::new(std::cell::Cell::new(0usize));
                let errs = std::rc::Rc::new(std::cell::Cell::new(0usize));
                let mut hs = vec![];
                for _ in 0..32 {
                    let (held, next, errs, conn, name, req) =
                        (held.clone(), next.clone(), errs.clone(), conn.clone(), name.clone(), req.clone());
                    hs.push(tokio::task::spawn_local(async move {
                        let mut buf = Vec::with_capacity(16384);
                        loop {
                            let i = next.get();
                            if i >= n {
                                break;
                            }
                            next.set(i + 1);
                            let r: std::io::Result<_> = async {
                                let t = tcp(target, i).await?;
                                let mut s = conn.connect(name.clone(), t).await?;
                                let (code, _) = roundtrip(&mut s, &req, &mut buf).await?;
                                if code != 200 {
                                    return Err(std::io::ErrorKind::Other.into());
                                }
                                Ok(s)
                            }
                            .await;
                            match r {
                                Ok(s) => held.borrow_mut().push(s),
                                Err(_) => errs.set(errs.get() + 1),
                            }
                        }
                    }));
                }
                for h in hs {
                    let _ = h.await;
                }
                println!("READY held={} errs={}", held.borrow().len(), errs.get());
                let mut x = [0u8; 1];
                let mut stdin = unsafe { std::fs::File::from_raw_fd(0) };
                let _ = std::io::Read::read(&mut stdin, &mut x);
            }
            "rate" => {
                let rps = num("--rps", 2000);
                let c = num("--c", 64) as usize;
                let secs = num("--secs", 5);
                let plain = num("--plain", 0) == 1;
                let warm = Duration::from_millis(500);
                let (tx, rx) = async_channel::unbounded::<Instant>();
                let lats = std::rc::Rc::new(std::cell::RefCell::new(Vec::<u32>::with_capacity((rps * secs) as usize)));
                let bad = std::rc::Rc::new(std::cell::Cell::new(0u64));
                let start_m = std::rc::Rc::new(std::cell::Cell::new(Instant::now()));
                trait Io: AsyncRead + AsyncWrite + Unpin {}
                impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}
                let mut hs = vec![];
                for i in 0..c {
                    let t = tcp(target, i).await.unwrap();
                    let mut s: Box<dyn Io> =
                        if plain { Box::new(t) } else { Box::new(conn.connect(name.clone(), t).await.unwrap()) };
                    let (rx, lats, bad, req, start_m) = (rx.clone(), lats.clone(), bad.clone(), req.clone(), start_m.clone());
                    hs.push(tokio::task::spawn_local(async move {
                        let mut buf = Vec::with_capacity(131072);
                        roundtrip(&mut s, &req, &mut buf).await.unwrap();
                        while let Ok(due) = rx.recv().await {
                            match roundtrip(&mut s, &req, &mut buf).await {
                                Ok((200, false)) => {
                                    if due >= start_m.get() {
                                        lats.borrow_mut().push(due.elapsed().as_nanos().min(u32::MAX as u128) as u32)
                                    }
                                }
                                _ => bad.set(bad.get() + 1),
                            }
                        }
                    }));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                // timerfd: microsecond wake-ups, unlike tokio's 1 ms timer
                let tfd = unsafe { OwnedFd::from_raw_fd(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK)) };
                let afd = tokio::io::unix::AsyncFd::with_interest(tfd, tokio::io::Interest::READABLE).unwrap();
                let t0 = Instant::now();
                start_m.set(t0 + warm);
                let end = t0 + warm + Duration::from_secs(secs);
                let mut due = t0;
                let mut seed = 0x9E3779B97F4A7C15u64;
                loop {
                    // Poisson arrivals, fixed seed
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let u = ((seed >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
                    due += Duration::from_secs_f64(-u.ln() / rps as f64);
                    if due > end {
                        break;
                    }
                    let now = Instant::now();
                    if due > now {
                        let d = due - now;
                        let its = libc::itimerspec {
                            it_interval: unsafe { std::mem::zeroed() },
                            it_value: libc::timespec { tv_sec: d.as_secs() as _, tv_nsec: (d.subsec_nanos() as i64).max(1) },
                        };
                        unsafe { libc::timerfd_settime(afd.as_raw_fd(), 0, &its, std::ptr::null_mut()) };
                        loop {
                            let mut g = afd.readable().await.unwrap();
                            let mut b = [0u8; 8];
                            let r = unsafe { libc::read(afd.as_raw_fd(), b.as_mut_ptr() as _, 8) };
                            if r == 8 {
                                break;
                            }
                            g.clear_ready();
                        }
                    }
                    tx.send(due).await.unwrap();
                }
                let unsent = rx.len();
                drop(rx);
                tx.close();
                for h in hs {
                    let _ = tokio::time::timeout(Duration::from_secs(3), h).await;
                }
                let mut l = std::mem::take(&mut *lats.borrow_mut());
                l.sort_unstable();
                let p = |q: f64| if l.is_empty() { 0.0 } else { l[((l.len() - 1) as f64 * q) as usize] as f64 / 1000.0 };
                println!(
                    "{{\"n\":{},\"bad\":{},\"unsent\":{unsent},\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}",
                    l.len(),
                    bad.get(),
                    p(0.5),
                    p(0.9),
                    p(0.99),
                    p(0.999),
                    p(1.0)
                );
            }
            _ => panic!("mode"),
        }
    });
}
