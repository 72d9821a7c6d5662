//! A connection is not used after the time that the upstream has announced.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tokio::time::sleep;

use super::server::{Reply, Webapp};
use super::{Surroundings, eventually};
use crate::upstream::{ResponseTimeout, UpstreamConnections};

const PATIENT: ResponseTimeout = ResponseTimeout::within(Duration::from_secs(5));

/// How many connections two requests need, with a pause between them.
async fn connections_for(answer: &'static str, pause: Duration) -> usize {
    let webapp = Webapp::start(move |_| Reply::raw(answer)).await;
    let mut around = Surroundings::of(webapp.address).without_login();
    around.settings.idle_timeout = Duration::from_secs(60);
    let upstream = around.open().unwrap();
    let connections = UpstreamConnections::new(upstream, &around.scope.tasks);
    for _ in 0..2 {
        let request = Request::new(Full::<Bytes>::default());
        let response = connections.send(request, PATIENT).await.unwrap();
        response.into_body().collect().await.unwrap();
        sleep(pause).await;
    }
    webapp.connections()
}

#[tokio::test]
async fn what_is_announced_bounds_the_time_for_which_a_connection_is_kept() {
    let moment = Duration::from_millis(50);
    let while_later = Duration::from_millis(700);
    for (answer, pause, expected) in [
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
            // A body of unknown length cannot be sent to such an upstream: hyper would leave it out.
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
            moment,
            2,
        ),
    ] {
        assert_eq!(connections_for(answer, pause).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_its_time_is_up_and_only_that_one() {
    let webapp = Webapp::start(|call| {
        let said = if call.has_line("x-short: yes") {
            "Keep-Alive: timeout=1\r\n"
        } else {
            ""
        };
        Reply::with(200, said, "hi")
    })
    .await;
    let mut around = Surroundings::of(webapp.address).without_login();
    around.settings.idle_timeout = Duration::from_secs(60);
    let upstream = around.open().unwrap();
    let connections = UpstreamConnections::new(upstream, &around.scope.tasks);
    let plain = Request::new(Full::<Bytes>::default());
    let mut short = Request::new(Full::<Bytes>::default());
    short
        .headers_mut()
        .insert("x-short", "yes".parse().unwrap());
    // Both at once, so that they need two connections.
    let (one, other) = tokio::join!(
        connections.send(plain, PATIENT),
        connections.send(short, PATIENT)
    );
    for response in [one, other] {
        response.unwrap().into_body().collect().await.unwrap();
    }
    assert_eq!(webapp.connections(), 2);
    eventually("closed", || webapp.ended() == 1).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(webapp.ended(), 1, "the other is kept");
}
