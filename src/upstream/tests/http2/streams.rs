//! Streams and connections: limits, GOAWAY, refusals, idle ends.

use std::time::Duration;

use http::Method;
use tokio::time::{sleep, timeout};

use super::super::connections::text;
use super::raw_server::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, OK, PING, RST_STREAM, RawServer, SETTINGS,
    max_streams,
};
use super::{TEST_TIMEOUT, get, opened, send, setup};
use crate::upstream::SendErrorKind;

#[tokio::test]
async fn requests_share_a_connection() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let first = get(&connections);
    let mut connection = server.accept(&[]).await;
    let stream = connection.request().await;
    connection.respond(stream, b"one").await;
    assert_eq!(text(first.await.unwrap().unwrap()).await, "one");
    let (second, third) = (get(&connections), get(&connections));
    let streams = [connection.request().await, connection.request().await];
    assert_eq!(streams, [3, 5]);
    // In the other order.
    connection.respond(5, b"three").await;
    connection.respond(3, b"two").await;
    let answers = [second, third].map(|sent| async { text(sent.await.unwrap().unwrap()).await });
    let [second, third] = answers;
    assert_eq!(
        (second.await.as_str(), third.await.as_str()),
        ("two", "three")
    );
    let metrics = setup.metrics.upstream("main");
    assert_eq!(metrics.upstream_connections_open.get(), 1);
}

#[tokio::test]
async fn a_goaway_leaves_the_streams_up_to_its_last_and_fails_the_others_as_not_processed() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    // The first response tells the limit of streams.
    let first = get(&connections);
    let mut connection = server.accept(&max_streams(100)).await;
    connection.request().await;
    connection.respond(1, b"").await;
    first.await.unwrap().unwrap();
    let mut sent = Vec::new();
    for number in 0..20 {
        sent.push(send(&connections, Method::POST, number));
        assert_eq!(
            connection.request().await,
            3 + 2 * u32::try_from(number).unwrap()
        );
    }
    let last = 3 + 2 * 9;
    connection
        .send(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0])
        .await;
    for stream in (3..=u32::from(last)).step_by(2) {
        connection.respond(stream, b"done").await;
    }
    for (number, sent) in sent.into_iter().enumerate() {
        let outcome = sent.await.unwrap();
        if number < 10 {
            assert_eq!(text(outcome.unwrap()).await, "done", "{number}");
        } else {
            let failure = outcome.unwrap_err();
            let found = (failure.kind, failure.is_unsent);
            assert_eq!(found, (SendErrorKind::NotProcessed, true), "{number}");
        }
    }
    // The next request opens another connection.
    let next = get(&connections);
    let mut another = server.accept(&[]).await;
    another.request().await;
    another.respond(1, b"new").await;
    assert_eq!(text(next.await.unwrap().unwrap()).await, "new");
    timeout(TEST_TIMEOUT, connection.until_closed())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_refused_stream_was_not_processed_and_other_resets_were() {
    for (code, kind, is_unsent) in [
        (7, SendErrorKind::NotProcessed, true),
        (2, SendErrorKind::Protocol, false),
        (8, SendErrorKind::Protocol, false),
        (11, SendErrorKind::Protocol, false),
    ] {
        let server = RawServer::start().await;
        let setup = setup(&server);
        let connections = opened(&setup);
        let sent = send(&connections, Method::POST, 1);
        let mut connection = server.accept(&[]).await;
        let stream = connection.request().await;
        connection
            .send(RST_STREAM, 0, stream, &[0, 0, 0, code])
            .await;
        let failure = sent.await.unwrap().unwrap_err();
        assert_eq!(
            (failure.kind, failure.is_unsent),
            (kind, is_unsent),
            "{code}"
        );
        // The connection stays.
        let next = get(&connections);
        let stream = connection.request().await;
        connection.respond(stream, b"").await;
        next.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_full_connection_means_another_one() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let first = get(&connections);
    let mut one = server.accept(&max_streams(2)).await;
    one.request().await;
    one.respond(1, b"").await;
    first.await.unwrap().unwrap();
    let long = [get(&connections), get(&connections)];
    for _ in 0..2 {
        let stream = one.request().await;
        one.send(HEADERS, END_HEADERS, stream, OK).await;
    }
    let quick = get(&connections);
    let mut two = timeout(TEST_TIMEOUT, server.accept(&max_streams(2)))
        .await
        .unwrap();
    two.request().await;
    two.respond(1, b"quick").await;
    assert_eq!(text(quick.await.unwrap().unwrap()).await, "quick");
    for sent in long {
        sent.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_limit_that_comes_after_the_first_requests_counts_at_once() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let sent: Vec<_> = (0..4).map(|_| get(&connections)).collect();
    let mut one = server.accept_silent().await;
    for _ in 0..4 {
        one.request().await;
    }
    one.send(SETTINGS, 0, 0, &max_streams(4)).await;
    // The limit is known once it is acknowledged.
    one.expect(SETTINGS).await;
    let next = get(&connections);
    let mut two = timeout(TEST_TIMEOUT, server.accept(&[])).await.unwrap();
    two.request().await;
    two.respond(1, b"next").await;
    assert_eq!(text(next.await.unwrap().unwrap()).await, "next");
    for stream in [1, 3, 5, 7] {
        one.respond(stream, b"").await;
    }
    for sent in sent {
        sent.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn with_eight_full_connections_requests_wait_for_a_stream() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let mut open = Vec::new();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(get(&connections));
        let mut connection = server.accept(&max_streams(1)).await;
        connection.request().await;
        // With the head of a response the limit has come too.
        connection.send(HEADERS, END_HEADERS, 1, OK).await;
        let response = held.pop().unwrap().await.unwrap().unwrap();
        open.push((connection, response));
    }
    let waits = get(&connections);
    assert!(
        timeout(Duration::from_millis(200), server.accept(&[]))
            .await
            .is_err()
    );
    let (mut connection, response) = open.remove(3);
    connection.send(0, END_STREAM, 1, b"end").await;
    assert_eq!(text(response).await, "end");
    let stream = timeout(TEST_TIMEOUT, connection.request()).await.unwrap();
    connection.respond(stream, b"at last").await;
    assert_eq!(text(waits.await.unwrap().unwrap()).await, "at last");
}

#[tokio::test]
async fn idle_connections_are_closed_and_those_with_streams_are_not() {
    let server = RawServer::start().await;
    let mut setup = setup(&server);
    setup.settings.idle_timeout = Duration::from_millis(100);
    let connections = opened(&setup);
    let first = get(&connections);
    let mut connection = server.accept(&[]).await;
    connection.request().await;
    sleep(Duration::from_millis(400)).await;
    connection.respond(1, b"late").await;
    assert_eq!(text(first.await.unwrap().unwrap()).await, "late");
    timeout(TEST_TIMEOUT, connection.until_closed())
        .await
        .unwrap();
    let gauge = &setup.metrics.upstream("main").upstream_connections_open;
    super::super::eventually("counted", || gauge.get() == 0).await;
}

#[tokio::test]
async fn dropping_the_connections_closes_them_after_their_streams() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let first = get(&connections);
    let mut connection = server.accept(&[]).await;
    connection.request().await;
    connection.send(HEADERS, END_HEADERS, 1, OK).await;
    let response = first.await.unwrap().unwrap();
    drop(connections);
    sleep(Duration::from_millis(50)).await;
    connection.send(0, END_STREAM, 1, b"whole").await;
    assert_eq!(text(response).await, "whole");
    timeout(TEST_TIMEOUT, connection.until_closed())
        .await
        .unwrap();
}

/// The clock jumps while nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_asked_and_given_up_when_it_does_not_answer() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let first = get(&connections);
    let mut connection = server.accept(&[]).await;
    connection.request().await;
    connection.send(HEADERS, END_HEADERS, 1, OK).await;
    let response = first.await.unwrap().unwrap();
    let body = tokio::spawn(async move {
        use http_body_util::BodyExt as _;
        response.into_body().collect().await
    });
    let began = tokio::time::Instant::now();
    let ping = connection.expect(PING).await;
    connection.send(PING, 1, 0, &ping.payload).await;
    connection.expect(PING).await;
    let waited = began.elapsed();
    assert!(
        waited > Duration::from_secs(300),
        "a server of gRPC allows one in five minutes"
    );
    let failure = body.await.unwrap().unwrap_err();
    assert!(
        began.elapsed() < waited + Duration::from_secs(15),
        "{failure}"
    );
}
