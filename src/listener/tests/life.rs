//! Limits, timeouts, drain and abort of plain HTTP/1 connections.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const SLOW: &str = "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n";
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn all_workers_share_one_address_and_a_busy_one_is_refused_at_once() {
    let first = bind(&settings(), 3).unwrap();
    let address = first.address();
    let again = config::Listener {
        address,
        ..settings()
    };
    let refused = bind(&again, 3).unwrap_err();
    assert!(matches!(refused, Error::Busy { address: busy } if busy == address));
    let sockets = first.into_sockets();
    assert_eq!(sockets.len(), 3);
    assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
    drop(sockets);
    assert_eq!(bind(&again, 2).unwrap().address(), address);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_permit_at_any_worker() {
    let gate = Gate::start(config::Listener {
        max_connections: 1,
        ..settings()
    });
    for _ in 0..8 {
        let mut first = gate.connect().await;
        first.send(GET).await;
        first.until("[/ 0]").await;
        let mut second = gate.connect().await;
        second.send(GET).await;
        assert_eq!(gate.metrics.connections_open.get(), 1);
        drop(first);
        second.until("[/ 0]").await;
    }
    assert_eq!(gate.metrics.connections.get(), 16);
}

#[tokio::test]
async fn a_raised_limit_admits_waiting_connections() {
    let gate = Gate::start(config::Listener {
        max_connections: 1,
        ..settings()
    });
    let mut first = gate.connect().await;
    first.send(GET).await;
    first.until("[/ 0]").await;
    let mut second = gate.connect().await;
    second.send(GET).await;
    gate.slots.resize(2);
    second.until("[/ 0]").await;
    assert_eq!(gate.metrics.connections_open.get(), 2);
}

#[tokio::test]
async fn a_head_that_arrives_too_slowly_gets_408() {
    let gate = Gate::start(config::Listener {
        header_timeout: SHORT,
        ..settings()
    });
    let mut raw = gate.connect().await;
    let began = Instant::now();
    let response = loop {
        raw.send("X").await;
        let mut byte = [0; 1];
        if let Ok(Ok(_)) = timeout(SHORT / 10, raw.0.peek(&mut byte)).await {
            break raw.rest().await;
        }
        assert!(
            began.elapsed() < TEST_TIMEOUT,
            "the request was not refused in time"
        );
    };
    assert!(response.starts_with("HTTP/1.1 408"), "{response:?}");
    assert!(began.elapsed() >= SHORT);
    drop(raw);
    eventually("the end is counted", || {
        gate.ends(ConnectionEnd::HeaderTimeout) == 1
    })
    .await;
}

#[tokio::test]
async fn the_second_head_on_a_connection_has_its_own_deadline() {
    let gate = Gate::start(config::Listener {
        header_timeout: SHORT,
        ..settings()
    });
    let mut raw = gate.connect().await;
    raw.send(GET).await;
    raw.until("[/ 0]").await;
    sleep(SHORT * 2).await; // longer than header_timeout, but no head has begun
    raw.send("GET / HTTP/1.1\r\n").await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 408"));
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_the_idle_time() {
    let gate = Gate::start(config::Listener {
        idle_timeout: SHORT,
        ..settings()
    });
    let mut silent = gate.connect().await;
    let mut kept_alive = gate.connect().await;
    kept_alive.send(GET).await;
    kept_alive.until("[/ 0]").await;
    assert_eq!(silent.rest().await, "");
    assert_eq!(kept_alive.rest().await, "");
    drop((silent, kept_alive));
    eventually("both ends are counted", || {
        gate.ends(ConnectionEnd::Idle) == 2
    })
    .await;
}

#[tokio::test]
async fn a_slow_response_or_a_slow_body_is_not_idle() {
    let gate = Gate::start(config::Listener {
        idle_timeout: SHORT,
        header_timeout: SHORT,
        ..settings()
    });
    let (mut slow, mut upload) = (gate.connect().await, gate.connect().await);
    slow.send(SLOW).await;
    upload
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        .await;
    sleep(SHORT * 4).await;
    upload.send("def").await;
    upload.until("[/ 6]").await;
    gate.slow.add_permits(1);
    slow.until("[/slow 0]").await;
}

#[tokio::test]
async fn a_drain_finishes_requests_in_flight_and_sends_close() {
    let gate = Gate::start(settings());
    let (mut busy, mut idle) = (gate.connect().await, gate.connect().await);
    idle.send(GET).await;
    idle.until("[/ 0]").await;
    busy.send(SLOW).await;
    eventually("both connections are open", || {
        gate.metrics.connections_open.get() == 2
    })
    .await;
    gate.scope.stop.drain();
    assert_eq!(idle.rest().await, "", "an idle connection is closed");
    gate.slow.add_permits(1);
    let response = busy.rest().await;
    assert!(response.contains("connection: close\r\n"), "{response:?}");
    assert!(response.ends_with("[/slow 0]"));
    drop((busy, idle));
    gate.ended().await;
    assert!(TcpStream::connect(gate.address).await.is_err());
}

#[tokio::test]
async fn a_connection_in_the_backlog_is_served_once_when_a_drain_begins() {
    let gate = Gate::start(settings());
    // Nothing is awaited in between: the workers have not seen these connections.
    let mut waiting: Vec<_> = (0..8)
        .map(|_| std::net::TcpStream::connect(gate.address).unwrap())
        .collect();
    gate.scope.stop.drain();
    for tcp in waiting.drain(..) {
        tcp.set_nonblocking(true).unwrap();
        let mut raw = Raw(TcpStream::from_std(tcp).unwrap());
        raw.send(GET).await;
        let response = raw.rest().await;
        assert!(response.ends_with("[/ 0]"), "{response:?}");
        assert!(response.contains("connection: close\r\n"));
    }
    gate.ended().await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_client_without_a_request() {
    let gate = Gate::start(settings());
    let mut silent = gate.connect().await;
    eventually("the connection is open", || {
        gate.metrics.connections_open.get() == 1
    })
    .await;
    gate.scope.stop.drain();
    assert_eq!(silent.rest().await, "");
    drop(silent);
    gate.ended().await;
}

#[tokio::test]
async fn an_abort_closes_all_connections_at_once() {
    let gate = Gate::start(settings());
    let mut busy = gate.connect().await;
    busy.send(SLOW).await;
    eventually("the connection is open", || {
        gate.metrics.connections_open.get() == 1
    })
    .await;
    gate.scope.stop.abort();
    gate.ended().await;
    assert_eq!(gate.ends(ConnectionEnd::Aborted), 1);
}

#[tokio::test]
async fn a_client_that_disconnects_releases_its_permit_and_is_not_a_failure() {
    let gate = Gate::start(settings());
    let mut busy = gate.connect().await;
    busy.send(SLOW).await;
    eventually("the connection is open", || {
        gate.metrics.connections_open.get() == 1
    })
    .await;
    drop(busy);
    eventually("the connection is closed", || {
        gate.metrics.connections_open.get() == 0
    })
    .await;
    assert_eq!(gate.ends(ConnectionEnd::Protocol), 0);
    gate.scope.stop.drain();
    gate.ended().await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_disconnected_and_a_slow_one_is_not() {
    let gate = Gate::start(config::Listener {
        idle_timeout: SHORT,
        ..settings()
    });
    let large = "GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (mut stuck, mut slow) = (gate.connect().await, gate.connect().await);
    stuck.send(large).await;
    slow.send(large).await;
    let began = Instant::now();
    let mut piece = vec![0; 4 * 1024 * 1024];
    let mut seen = 0;
    while let Ok(count @ 1..) = slow.0.read(&mut piece).await {
        seen += count;
        if seen < 30 * 1024 * 1024 && began.elapsed() < SHORT * 5 {
            sleep(SHORT / 10).await;
        }
    }
    assert!(seen > 32 * 1024 * 1024, "{seen}");
    eventually("the other connection is closed", || {
        gate.ends(ConnectionEnd::Idle) == 1
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_opens_as_many_connections_as_it_can_leaves_slots_for_others() {
    let gate = Gate::start(config::Listener {
        max_connections: 18,
        ..settings()
    });
    let mut first_peer = Vec::new();
    for _ in 0..17 {
        first_peer.push(gate.connect().await);
    }
    eventually("the peer has its share of connections", || {
        gate.metrics.connections_open.get() == 17
    })
    .await;
    for _ in 0..3 {
        let mut refused = gate.connect().await;
        assert_eq!(refused.rest().await, "", "the connection is closed at once");
    }
    assert_eq!(gate.ends(ConnectionEnd::PeerShare), 3);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut second_peer = Raw(socket.connect(gate.address).await.unwrap());
    second_peer.send(GET).await;
    second_peer.until("[/ 0]").await;
    drop(first_peer);
    eventually("permits are released", || {
        gate.metrics.connections_open.get() == 1
    })
    .await;
    gate.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
}
