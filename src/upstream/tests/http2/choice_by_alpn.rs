//! The version that a server without ALPN, which speaks HTTP/1.1, is spoken to with. A server that chooses
//! HTTP/2 is in `tests/suite/http2_upstreams`.

use super::get;
use crate::config::{Http2Mode, Trust};
use crate::error_chain::chain;
use crate::upstream::SendErrorKind;
use crate::upstream::tests::connections::connections;
use crate::upstream::tests::trust::{Identity, setup};

#[tokio::test]
async fn auto_falls_back_to_http1_and_always_says_what_is_missing() {
    let identity = Identity::of("127.0.0.1");
    let webapp = identity.serve().await;
    let mut setup = setup(&webapp, Trust::Pins(vec![identity.pin()]));
    setup.settings.http2 = Http2Mode::Auto;
    let auto = std::sync::Arc::new(connections(&setup));
    for _ in 0..3 {
        assert_eq!(get(&auto).await.unwrap().unwrap().status(), 200);
    }
    assert!(
        webapp
            .calls()
            .iter()
            .all(|call| call.head.contains("HTTP/1.1"))
    );
    setup.settings.http2 = Http2Mode::Always;
    let always = std::sync::Arc::new(connections(&setup));
    let failure = get(&always).await.unwrap().unwrap_err();
    assert_eq!(failure.kind, SendErrorKind::ConnectFailed);
    assert!(
        chain(&failure).contains("upstream.main.http2"),
        "{}",
        chain(&failure)
    );
    assert_eq!(webapp.requests(), 3);
}
