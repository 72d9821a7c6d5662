use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;

use super::*;

struct Operator {
    address: SocketAddr,
    scope: TaskScope,
    is_ready: Arc<AtomicBool>,
    refreshed: Arc<AtomicUsize>,
}

impl Operator {
    fn start() -> Self {
        let bound = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.address();
        let scope = TaskScope::new(Handle::current());
        let is_ready = Arc::new(AtomicBool::new(true));
        let refreshed = Arc::new(AtomicUsize::new(0));
        let (ready, refresh) = (Arc::clone(&is_ready), Arc::clone(&refreshed));
        let parts = AdminParts {
            refresh: Arc::new(move || {
                refresh.fetch_add(1, Ordering::SeqCst);
            }),
            ready: Arc::new(move || match ready.load(Ordering::SeqCst) {
                true => Ok(()),
                false => Err("no upstream token\nno store".to_owned()),
            }),
            notes: Arc::new(|| None),
            keys: KeyAdmin {
                token: Arc::new(|| None),
                ring: crate::identity::KeyRing::new(
                    Arc::new(crate::store::Store::Memory),
                    Vec::new(),
                ),
                configured: Arc::new(Vec::new),
                upstreams: Arc::new(Vec::new),
            },
            users: UserAdmin {
                users: None,
                tokens: crate::token::TokenStore::new(
                    &crate::config::UsersConfig::default(),
                    Metrics::new(),
                ),
            },
            endpoints: EndpointAdmin {
                upstreams: Arc::new(Vec::new),
            },
        };
        let state = AdminState::new(Metrics::new());
        state.open(parts);
        scope.spawn("operator", serve(bound, state, scope.clone()));
        Self {
            address,
            scope,
            is_ready,
            refreshed,
        }
    }

    async fn send_request(&self, method: &str, path: &str) -> String {
        let send_request = async {
            let mut tcp = TcpStream::connect(self.address).await.unwrap();
            let request =
                format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.unwrap();
            let mut response = String::new();
            tcp.read_to_string(&mut response).await.unwrap();
            response
        };
        timeout(Duration::from_secs(10), send_request)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn the_operators_listener_serves_health_readiness_and_metrics() {
    let operator = Operator::start();
    let health = operator.send_request("GET", "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("\r\n\r\nok\n"));
    let ready = operator.send_request("GET", "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("ready\n"));
    let metrics = operator.send_request("GET", "/metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(metrics.contains("\ntollgate_connections_open 0\n"));
    assert_eq!(operator.refreshed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn not_ready_gives_one_reason_per_line_and_stays_alive() {
    let operator = Operator::start();
    operator.is_ready.store(false, Ordering::SeqCst);
    operator.scope.stop.drain();
    let ready = operator.send_request("GET", "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.ends_with("\r\n\r\ndraining\nno upstream token\nno store\n"));
    assert!(
        operator
            .send_request("GET", "/healthz")
            .await
            .contains(" 200 ")
    );
}

#[tokio::test]
async fn head_has_no_body_and_other_methods_and_paths_are_refused() {
    let operator = Operator::start();
    let head = operator.send_request("HEAD", "/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"));
    let post = operator.send_request("POST", "/metrics").await;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD\r\n"));
    assert!(
        operator
            .send_request("GET", "/")
            .await
            .starts_with("HTTP/1.1 404")
    );
}

#[tokio::test]
async fn abort_ends_it_with_its_connections() {
    let operator = Operator::start();
    let idle = TcpStream::connect(operator.address).await.unwrap();
    operator.send_request("GET", "/healthz").await;
    operator.scope.stop.abort();
    let ended = timeout(Duration::from_secs(10), operator.scope.tasks.wait()).await;
    assert!(ended.is_ok());
    drop(idle);
}

#[test]
fn a_busy_address_is_an_error_at_once() {
    let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let second = bind(first.address()).unwrap_err();
    assert!(second.to_string().contains("is it in use?"));
}
