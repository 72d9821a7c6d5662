//! Requests and responses on their streams, with the server of the h2 crate.

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::super::connections::{RESPONSE_TIMEOUT, connections, text};
use super::super::{UpstreamSetup, outbound};
use super::raw_server::{DATA, HEADERS, RST_STREAM, RawServer, WINDOW_UPDATE};
use super::{TEST_TIMEOUT, get, opened, setup};
use crate::config::Http2Mode;
use crate::upstream::{OutboundFields, OutboundRequest, ResponseTimeout, SendErrorKind};

type Exchange = (Request<RecvStream>, SendResponse<Bytes>);

/// A server that hands each request to the test.
async fn serve() -> (UpstreamSetup, mpsc::UnboundedReceiver<Exchange>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = UpstreamSetup::of(listener.local_addr().unwrap()).without_login();
    setup.settings.http2 = Http2Mode::Always;
    let (sender, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok(exchange)) = connection.accept().await {
                    let _ = sender.send(exchange);
                }
            });
        }
    });
    (setup, requests)
}

#[tokio::test]
async fn a_request_has_the_fields_of_http2_and_none_of_http1() {
    let (setup, mut requests) = serve().await;
    let connections = opened(&setup);
    let head = Request::builder()
        .method(Method::PUT)
        .header("host", "Site.internal:8443")
        .header("connection", "te, x-a")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("upgrade", "h2c")
        .header("te", "trailers")
        .header("transfer-encoding", "chunked")
        .header("x-b", "kept")
        .body(())
        .unwrap();
    let sent = tokio::spawn(async move {
        let request = OutboundRequest {
            method: &Method::PUT,
            target: "/a%2Fb//c;d?x=%20y&&",
            fields: OutboundFields::of(head.headers()),
            body: Full::from("content"),
        };
        text(connections.send(request, RESPONSE_TIMEOUT).await.unwrap()).await
    });
    let (request, mut respond) = requests.recv().await.unwrap();
    let uri = request.uri();
    assert_eq!(
        uri.to_string(),
        "http://Site.internal:8443/a%2Fb//c;d?x=%20y&&"
    );
    let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["te", "x-b"]);
    let mut body = request.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "content");
    assert!(body.data().await.is_none());
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data("answer".into(), true).unwrap();
    assert_eq!(sent.await.unwrap(), "answer");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (setup, mut requests) = serve().await;
    let connections = connections(&setup);
    let trailers = |value: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", value.parse().unwrap());
        trailers
    };
    let frames = [
        Ok(Frame::data(Bytes::from("up"))),
        Ok::<_, std::io::Error>(Frame::trailers(trailers("up"))),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let sent = tokio::spawn(async move {
        let request = outbound(Request::post("/").body(body).unwrap());
        let response = connections.send(request, RESPONSE_TIMEOUT).await.unwrap();
        response.into_body().collect().await.unwrap()
    });
    let (request, mut respond) = requests.recv().await.unwrap();
    let mut body = request.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "up");
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap(), trailers("up"));
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data("down".into(), false).unwrap();
    stream.send_trailers(trailers("down")).unwrap();
    let whole = sent.await.unwrap();
    assert_eq!(*whole.trailers().unwrap(), trailers("down"));
    assert_eq!(whole.to_bytes(), "down");
}

#[tokio::test]
async fn a_dropped_request_or_response_resets_its_stream_only() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let kept = get(&connections);
    let mut connection = server.accept(&[]).await;
    connection.request().await;
    let dropped = get(&connections);
    let stream = connection.request().await;
    dropped.abort();
    let reset = connection.expect(RST_STREAM).await;
    assert_eq!(
        (reset.stream, &reset.payload[..]),
        (stream, &[0, 0, 0, 8][..])
    );
    let response = get(&connections);
    let stream = connection.request().await;
    connection.send(HEADERS, 4, stream, &[0x88]).await;
    drop(response.await.unwrap().unwrap());
    assert_eq!(connection.expect(RST_STREAM).await.stream, stream);
    connection.respond(1, b"kept").await;
    assert_eq!(text(kept.await.unwrap().unwrap()).await, "kept");
}

#[tokio::test]
async fn neither_direction_keeps_more_than_its_window() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let sent = get(&connections);
    let mut connection = server.accept(&[]).await;
    // The windows that the gate gives: of a stream in SETTINGS, of the connection in WINDOW_UPDATE.
    let update = connection.expect(WINDOW_UPDATE).await;
    assert_eq!(update.stream, 0);
    connection.request().await;
    connection.send(HEADERS, 4, 1, &[0x88]).await;
    for _ in 0..8 {
        connection.send(DATA, 0, 1, &[b'x'; 16 * 1024]).await;
    }
    let mut body = sent.await.unwrap().unwrap().into_body();
    // Nothing is read: no window is given back.
    let next = timeout(Duration::from_millis(200), connection.expect(WINDOW_UPDATE)).await;
    assert!(next.is_err());
    let mut read = 0;
    while read < 128 * 1024 {
        read += body
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len();
    }
    timeout(TEST_TIMEOUT, connection.expect(WINDOW_UPDATE))
        .await
        .unwrap();
    assert!(!body.is_end_stream());
}

#[tokio::test]
async fn a_late_response_is_reported_and_a_mute_connection_is_not_used_again() {
    let server = RawServer::start().await;
    let setup = setup(&server);
    let connections = opened(&setup);
    let request = outbound(Request::get("/").body(Full::default()).unwrap());
    let short = ResponseTimeout::within(Duration::from_millis(100));
    let (outcome, mut one) = tokio::join!(connections.send(request, short), server.accept_silent());
    assert_eq!(outcome.unwrap_err().kind, SendErrorKind::FirstByteTimeout);
    let next = get(&connections);
    let mut two = timeout(TEST_TIMEOUT, server.accept(&[])).await.unwrap();
    two.request().await;
    two.respond(1, b"").await;
    next.await.unwrap().unwrap();
    one.until_closed().await;
}

#[tokio::test]
async fn an_early_response_is_whole_although_the_request_is_not() {
    for (has_body, is_whole) in [(true, true), (false, true)] {
        let server = RawServer::start().await;
        let setup = setup(&server);
        let connections = connections(&setup);
        let (feed, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, std::io::Error>>();
        feed.send(Ok(Frame::data(Bytes::from("begin")))).unwrap();
        let mut body = body;
        let stream = futures_util::stream::poll_fn(move |cx| body.poll_recv(cx));
        let sent = tokio::spawn(async move {
            let request = outbound(Request::post("/").body(StreamBody::new(stream)).unwrap());
            let response = connections.send(request, RESPONSE_TIMEOUT).await.unwrap();
            response.into_body().collect().await
        });
        let mut connection = server.accept(&[]).await;
        connection.request().await;
        connection
            .send(HEADERS, 4 | u8::from(!has_body), 1, &[0x88])
            .await;
        if has_body {
            connection.send(DATA, 1, 1, b"early").await;
        }
        connection.send(RST_STREAM, 0, 1, &[0, 0, 0, 0]).await;
        assert_eq!(sent.await.unwrap().is_ok(), is_whole, "{has_body}");
        drop(feed);
        sleep(Duration::from_millis(1)).await;
    }
}
