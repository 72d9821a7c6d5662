//! How long a connection is kept.

use super::connections::{PATIENT, SHORT, connections, post, text};
use super::server::{Reply, Webapp};
use super::{Surroundings, eventually};

#[tokio::test]
async fn idle_connections_are_closed() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let mut around = Surroundings::of(webapp.address).without_login();
    around.settings.idle_timeout = SHORT;
    let connections = connections(&around);
    text(connections.send(post("x"), PATIENT).await.unwrap()).await;
    eventually("closed", || webapp.ended() == 1).await;
    eventually("counted", || {
        around
            .metrics
            .upstream("main")
            .upstream_connections_open
            .get()
            == 0
    })
    .await;
    assert!(format!("{connections:?}").contains("idle: 0"));
}
