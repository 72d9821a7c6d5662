//! The same job done with Pingora: TLS, bearer check, rate limit, header swap, keep-alive upstream.
use async_trait::async_trait;
use pingora::prelude::*;
use pingora::http::ResponseHeader;
use pingora::listeners::tls::TlsSettings;
use pingora::proxy::{http_proxy_service, ProxyHttp, Session};
use pingora::server::configuration::ServerConf;
use pingora_limits::rate::Rate;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct P {
    tokens: HashMap<Vec<u8>, u32, ahash::RandomState>,
    rate: Rate,
    upstream: String,
    up_auth: http::HeaderValue,
    /// Access lines, written 64 KiB at a time.
    log: Option<Mutex<BufWriter<File>>>,
}

#[async_trait]
impl ProxyHttp for P {
    type CTX = ();
    fn new_ctx(&self) {}

    async fn request_filter(&self, s: &mut Session, _: &mut ()) -> Result<bool> {
        let id = s
            .req_header()
            .headers
            .get(http::header::AUTHORIZATION)
            .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "))
            .and_then(|t| self.tokens.get(t))
            .copied();
        let Some(id) = id else {
            // respond_error() would close the connection; the peers keep it
            let mut h = ResponseHeader::build(401, Some(2))?;
            h.insert_header(http::header::CONTENT_TYPE, "application/json")?;
            h.insert_header(http::header::CONTENT_LENGTH, "24")?;
            s.write_response_header(Box::new(h), false).await?;
            s.write_response_body(Some(bytes::Bytes::from_static(b"{\"error\":\"unauthorized\"}")), true).await?;
            return Ok(true);
        };
        if self.rate.observe(&id, 1) > 1_000_000_000 {
            s.respond_error(429).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn upstream_peer(&self, _s: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&self.upstream, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        s: &mut Session,
        r: &mut RequestHeader,
        _: &mut (),
    ) -> Result<()> {
        r.insert_header(http::header::AUTHORIZATION, self.up_auth.clone())?;
        if let Some(ip) = s.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip().to_string()) {
            r.insert_header("X-Forwarded-For", ip)?;
        }
        r.insert_header("X-Forwarded-Proto", "https")?;
        Ok(())
    }

    async fn logging(&self, s: &mut Session, e: Option<&pingora::Error>, _: &mut ()) {
        let Some(log) = &self.log else { return };
        let status = s.response_written().map_or(0, |r| r.status.as_u16());
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let from = s.client_addr().and_then(|a| a.as_inet()).map(|a| a.to_string()).unwrap_or_default();
        let line = s.request_summary();
        let sent = s.body_bytes_sent();
        let failed = e.is_some();
        let mut log = log.lock().unwrap();
        let _ = writeln!(log, "{at} {from} \"{line}\" {status} {sent} {failed}");
    }
}

fn given(name: &str) -> Option<String> {
    let mut words = std::env::args().skip_while(|word| word != name);
    words.next()?;
    words.next()
}

fn arg(name: &str) -> String {
    given(name).unwrap_or_else(|| panic!("missing {name}"))
}

fn main() {
    let mut conf = ServerConf::default();
    conf.threads = arg("--threads").parse().unwrap();
    conf.upstream_keepalive_pool_size = 512;
    let tokens = std::fs::read_to_string(arg("--tokens")).unwrap();
    let tokens = tokens.lines().enumerate().map(|(i, t)| (t.as_bytes().to_vec(), i as u32)).collect();
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let p = P {
        tokens,
        rate: Rate::new(Duration::from_secs(1)),
        upstream: arg("--upstream"),
        up_auth: http::HeaderValue::from_str(&format!("Bearer {}", arg("--upstream-token"))).unwrap(),
        log: given("--access-log").map(|path| {
            let file = File::options().append(true).create(true).open(path).unwrap();
            Mutex::new(BufWriter::with_capacity(65536, file))
        }),
    };
    let mut svc = http_proxy_service(&server.configuration, p);
    let mut tls = TlsSettings::intermediate(&arg("--cert"), &arg("--key")).unwrap();
    tls.enable_h2();
    svc.add_tls_with_settings(&arg("--listen"), None, tls);
    server.add_service(svc);
    server.run_forever();
}
