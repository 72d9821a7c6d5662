//! A connection is not reused after the time that the upstream has announced.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tokio::time::sleep;

use super::server::{Reply, Webapp};
use super::{UpstreamSetup, eventually, outbound};
use crate::upstream::{ResponseTimeout, UpstreamConnections};

const RESPONSE_TIMEOUT: ResponseTimeout = ResponseTimeout::within(Duration::from_secs(5));

/// How many connections two requests need, with a pause between them.
async fn connections_for(response: &'static str, pause: Duration) -> usize {
    let webapp = Webapp::start(move |_| Reply::raw(response)).await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.idle_timeout = Duration::from_secs(60);
    let upstream = setup.open().unwrap();
    let connections = UpstreamConnections::new(upstream, &setup.scope.tasks);
    for _ in 0..2 {
        let request = Request::new(Full::<Bytes>::default());
        let response = connections
            .send(outbound(request), RESPONSE_TIMEOUT)
            .await
            .unwrap();
        response.into_body().collect().await.unwrap();
        sleep(pause).await;
    }
    webapp.connections()
}

#[tokio::test]
async fn an_announced_keep_alive_limits_the_reuse_of_a_connection() {
    let moment = Duration::from_millis(50);
    let while_later = Duration::from_millis(700);
    for (response, pause, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            while_later,
            1,
        ),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=60\r\nContent-Length: 2\r\n\r\nhi",
            while_later,
            1,
        ),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nhi",
            while_later,
            2,
        ),
        (
            "HTTP/1.1 200 OK\r\nkeep-alive: Timeout=\"1\", max=9\r\nContent-Length: 0\r\n\r\n",
            while_later,
            2,
        ),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            2,
        ),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=60, max=0\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            2,
        ),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=60, max=1\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            1,
        ),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: nonsense\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            1,
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nKeep-Alive: timeout=60\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            2,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", moment, 2),
        (
            // hyper would omit a request body of unknown length for such an upstream.
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            2,
        ),
    ] {
        let count = connections_for(response, pause).await;
        assert_eq!(count, expected, "{response}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_its_keep_alive_and_only_that_one() {
    let webapp = Webapp::start(|call| {
        let header = if call.has_line("x-short: yes") {
            "Keep-Alive: timeout=1\r\n"
        } else {
            ""
        };
        Reply::with(200, header, "hi")
    })
    .await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.idle_timeout = Duration::from_secs(60);
    let upstream = setup.open().unwrap();
    let connections = UpstreamConnections::new(upstream, &setup.scope.tasks);
    let plain = Request::new(Full::<Bytes>::default());
    let mut short = Request::new(Full::<Bytes>::default());
    short
        .headers_mut()
        .insert("x-short", "yes".parse().unwrap());
    // Both at once, so that they need two connections.
    let (one, other) = tokio::join!(
        connections.send(outbound(plain), RESPONSE_TIMEOUT),
        connections.send(outbound(short), RESPONSE_TIMEOUT)
    );
    for response in [one, other] {
        response.unwrap().into_body().collect().await.unwrap();
    }
    assert_eq!(webapp.connections(), 2);
    eventually("the connection is closed", || webapp.ended() == 1).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(webapp.ended(), 1, "the other connection stays open");
}
