//! Upstream permits: slow readers, slow writers, long queues.

use super::*;
use crate::harness::eventually;
use crate::harness::raw::Raw;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Api-Key: {FIRST_CLIENT}\r\n\r\n")
}

/// Reads 20 kB a second, without end.
async fn slow_reader(gateway: &Gateway) -> tokio::task::JoinHandle<()> {
    let mut raw = Raw::connect(gateway).await;
    raw.send(get("/x/large").as_bytes()).await;
    tokio::spawn(async move {
        let mut piece = [0; 2000];
        while raw.0.read_exact(&mut piece).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_leave_permits_for_other_clients() {
    let gateway = gate(upstream().await, Setup::default()).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut readers = Vec::new();
    for _ in 0..64 {
        readers.push(slow_reader(&gateway).await);
    }
    assert_other_client_is_served(&gateway, idle_latency, "64 slow readers").await;
    let metrics = &gateway.metrics;
    eventually("their permits are free again", async || {
        metrics.upstream("main").stalled_streams.get() == 64
    })
    .await;
    // Permits are free also for other requests of the client with slow readers.
    let first_client = KeyClient::new(&gateway, FIRST_CLIENT);
    let (good, _) = first_client.tries("/x/quick", 50).await;
    assert_eq!(good, 50);
    assert!(
        readers.iter().all(|reader| !reader.is_finished()),
        "no response was aborted"
    );
    assert_eq!(metrics.upstream("main").stalled_streams_aborted.get(), 0);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("stalled streams are released", async || {
        metrics.upstream("main").stalled_streams.get() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_too_many_slow_readers_loses_the_slowest_when_others_wait() {
    let setup = Setup::default().upstream("concurrency = 3\nstalled_streams = 3");
    let gateway = gate(upstream().await, setup).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut readers = Vec::new();
    for _ in 0..6 {
        readers.push(slow_reader(&gateway).await);
    }
    eventually("the client has its share of stalled streams", async || {
        gateway.metrics.upstream("main").stalled_streams.get() == 3
    })
    .await;
    let other_client = KeyClient::new(&gateway, OTHER_CLIENT);
    for _ in 0..5 {
        assert_eq!(
            other_client.get("/x/quick").await.unwrap(),
            StatusCode::OK,
            "{idle_latency:?}"
        );
        readers.push(slow_reader(&gateway).await);
    }
    assert!(
        gateway
            .metrics
            .upstream("main")
            .stalled_streams_aborted
            .get()
            > 0
    );
    assert!(gateway.metrics.upstream("main").stalled_streams.get() <= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_hold_no_permit_until_their_end() {
    let setup = Setup::default().upstream("concurrency = 8");
    let gateway = gate(upstream().await, setup).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut uploads = Vec::new();
    // Small, large, and of unknown length; each in 12 pieces.
    let kinds = [
        ("content-length: 600", 50),
        ("content-length: 1200000", 100_000),
        ("transfer-encoding: chunked", 50),
    ];
    for (field, piece) in kinds.iter().cycle().take(24) {
        let mut raw = Raw::connect(&gateway).await;
        let head = format!(
            "POST /x/up HTTP/1.1\r\nHost: a\r\nX-Api-Key: {FIRST_CLIENT}\r\n{field}\r\n\r\n"
        );
        raw.send(head.as_bytes()).await;
        let is_chunked = field.contains("chunked");
        let data = vec![b'x'; *piece];
        uploads.push(tokio::spawn(async move {
            for _ in 0..12 {
                sleep(Duration::from_millis(400)).await;
                if is_chunked {
                    raw.send(format!("{:x}\r\n", data.len()).as_bytes()).await;
                }
                raw.send(&data).await;
                if is_chunked {
                    raw.send(b"\r\n").await;
                }
            }
            if is_chunked {
                raw.send(b"0\r\n\r\n").await;
            }
            raw.read_until("\r\n\r\n").await
        }));
    }
    // Checked before the other client's requests, which may take as long as the uploads.
    let metrics = &gateway.metrics;
    eventually(
        "all but the small uploads are stalled streams",
        async || metrics.upstream("main").stalled_streams.get() == 16,
    )
    .await;
    assert_other_client_is_served(&gateway, idle_latency, "24 slow uploads").await;
    assert!(
        metrics.upstream("main").stalled_streams.get() <= 16,
        "small uploads are no stalled streams"
    );
    for upload in uploads {
        let response = upload.await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    assert_eq!(metrics.upstream("main").stalled_streams.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_with_early_responses_hold_no_permit() {
    let setup = Setup::default().upstream("concurrency = 4");
    let gateway = gate(upstream().await, setup).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut uploads = Vec::new();
    for _ in 0..12 {
        let mut raw = Raw::connect(&gateway).await;
        let head = format!(
            "POST /x/early HTTP/1.1\r\nHost: a\r\nX-Api-Key: {FIRST_CLIENT}\r\ncontent-length: 900000\r\n\r\n"
        );
        raw.send(head.as_bytes()).await;
        uploads.push(tokio::spawn(async move {
            loop {
                raw.send(&[b'x'; 500]).await;
                sleep(Duration::from_millis(200)).await;
            }
        }));
    }
    eventually("their permits are free again", async || {
        gateway.metrics.upstream("main").stalled_streams.get() == 12
    })
    .await;
    assert_other_client_is_served(&gateway, idle_latency, "12 uploads with early responses").await;
    uploads.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_hang_at_the_upstream_leave_permits_for_others() {
    let gateway = gate(upstream().await, Setup::default()).await;
    let idle_latency = idle_latency(&gateway).await;
    let mut hanging = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::connect(&gateway).await;
        raw.send(get("/x/sink").as_bytes()).await;
        hanging.push(raw);
    }
    assert_other_client_is_served(&gateway, idle_latency, "100 hanging requests").await;
    assert!(
        gateway
            .metrics
            .upstream("main")
            .upstream_requests_queued
            .get()
            > 0,
        "the first client waits"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_waiting_requests_of_one_client_delay_another_client_by_one_request() {
    let setup = Setup::default()
        .upstream("concurrency = 4\nqueue_timeout = \"60s\"")
        .listener("max_streams = 1000");
    let gateway = gate(upstream().await, setup).await;
    let idle_latency = idle_latency(&gateway).await;
    let first_client = KeyClient {
        client: Client::new(&gateway),
        key: FIRST_CLIENT,
    };
    let crowd = std::sync::Arc::new(first_client);
    let waiting: Vec<_> = (0..1000)
        .map(|_| {
            let first_client = std::sync::Arc::clone(&crowd);
            tokio::spawn(async move { first_client.get("/x/slow").await })
        })
        .collect();
    eventually("the requests wait", async || {
        gateway
            .metrics
            .upstream("main")
            .upstream_requests_queued
            .get()
            > 500
    })
    .await;
    let other_client = KeyClient::new(&gateway, OTHER_CLIENT);
    let (good, slowest) = other_client.tries("/x/quick", 40).await;
    assert_eq!(good, 40);
    // A request takes 100 ms; in a single queue this would be some 20 seconds.
    assert!(slowest < FLOOR * 2 + idle_latency * 5, "{slowest:?}");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    // Requests of a disconnected client no longer wait.
    eventually("the queue is empty", async || {
        gateway
            .metrics
            .upstream("main")
            .upstream_requests_queued
            .get()
            == 0
    })
    .await;
    assert_eq!(crowd.get("/x/quick").await.unwrap(), StatusCode::OK);
}
