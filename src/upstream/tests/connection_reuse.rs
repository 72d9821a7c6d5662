//! How long an idle connection is reused.

use super::connections::{RESPONSE_TIMEOUT, SHORT, connections, post, text};
use super::server::{Reply, Webapp};
use super::{UpstreamSetup, eventually};

#[tokio::test]
async fn idle_connections_are_closed() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.idle_timeout = SHORT;
    let connections = connections(&setup);
    text(connections.send(post("x"), RESPONSE_TIMEOUT).await.unwrap()).await;
    eventually("closed", || webapp.ended() == 1).await;
    eventually("counted", || {
        setup
            .metrics
            .upstream("main")
            .upstream_connections_open
            .get()
            == 0
    })
    .await;
    assert!(format!("{connections:?}").contains("idle: 0"));
}
