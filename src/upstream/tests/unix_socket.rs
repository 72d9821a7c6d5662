//! An upstream behind a Unix socket: logins, probes and requests, and what happens to the socket's file.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use tokio::time::Instant;

use super::server::{Call, Reply, Webapp};
use super::{TEST_TIMEOUT, UpstreamSetup, eventually, outbound};
use crate::config::BaseAddress;
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::upstream::{ResponseTimeout, SendErrorKind, Upstream, UpstreamConnections};

fn setup(name: &str) -> UpstreamSetup {
    let mut setup = UpstreamSetup::of("127.0.0.1:1".parse().unwrap());
    let path = setup.folder.0.join(name);
    setup.settings.base = BaseAddress::of_socket(path);
    setup
}

fn socket(setup: &UpstreamSetup) -> &Path {
    setup.settings.base.socket.as_deref().unwrap()
}

fn connections(setup: &UpstreamSetup) -> UpstreamConnections<Empty<Bytes>> {
    UpstreamConnections::new(setup.open().unwrap(), &setup.scope.tasks)
}

/// The body of one response, or the error.
async fn get(
    connections: &UpstreamConnections<Empty<Bytes>>,
) -> Result<String, (SendErrorKind, String)> {
    let request = outbound(Request::new(Empty::new()));
    let timeout = ResponseTimeout::within(TEST_TIMEOUT);
    let response = connections.send(request, timeout).await;
    let response = response.map_err(|failure| (failure.kind, chain(&failure)))?;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

fn logs_in_and_says(text: &'static str) -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    move |call| match call.head.starts_with("POST /v1/users/login") {
        true => Reply::login("token", 86_400),
        false => Reply::with(200, "", text),
    }
}

async fn logged_in(upstream: &Arc<Upstream>) {
    let lease = upstream.shared_session().unwrap().lease();
    tokio::time::timeout(TEST_TIMEOUT, lease)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_login_and_requests_go_over_the_socket_with_a_name_as_host() {
    for (host, expected) in [(None, "localhost"), (Some("web.app:81"), "web.app:81")] {
        let mut setup = setup("w.sock");
        setup.settings.host = host.map(str::to_owned);
        let stop = ShutdownSignal::default();
        let webapp = Webapp::start_at_socket(socket(&setup), &stop, logs_in_and_says("hi"));
        let connections = connections(&setup);
        logged_in(connections.upstream()).await;
        for _ in 0..3 {
            assert_eq!(get(&connections).await.unwrap(), "hi");
        }
        let calls = webapp.calls();
        assert_eq!(calls.len(), 4);
        for call in calls {
            assert!(call.has_line(&format!("host: {expected}")), "{}", call.head);
            assert!(!call.head.contains("w.sock"), "{}", call.head);
        }
        assert_eq!(webapp.connections(), 2, "one for the login, one is kept");
        setup.scope.stop.drain();
    }
}

#[tokio::test]
async fn each_state_of_the_socket_file_is_explained_and_the_socket_works_once_it_is_good() {
    let setup = setup("w.sock").without_login();
    let path = socket(&setup).to_owned();
    let connections = connections(&setup);
    let failure = async |expected: &str| {
        let (kind, text) = get(&connections).await.unwrap_err();
        assert_eq!(kind, SendErrorKind::ConnectFailed);
        let has_path = text.contains(&path.display().to_string());
        assert!(text.contains(expected) && has_path, "{expected}: {text}");
    };
    failure("there is no such file").await;
    std::fs::write(&path, "text").unwrap();
    failure("is no socket").await;
    std::fs::remove_file(&path).unwrap();
    let datagrams = UnixDatagram::bind(&path).unwrap();
    failure("is no socket of a server that accepts streams").await;
    drop(datagrams);
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    failure("no server listens on it").await;
    std::fs::remove_file(&path).unwrap();
    let stop = ShutdownSignal::default();
    let _webapp = Webapp::start_at_socket(&path, &stop, |_| Reply::with(200, "", "hi"));
    if !rustix::process::geteuid().is_root() {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        failure("needs write permission on the socket").await;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(get(&connections).await.unwrap(), "hi");
}

#[tokio::test]
async fn a_restarted_server_is_reached_at_its_new_socket_without_a_failed_request() {
    let setup = setup("w.sock").without_login();
    let path = socket(&setup).to_owned();
    let connections = connections(&setup);
    let old_stop = ShutdownSignal::default();
    let old = Webapp::start_at_socket(&path, &old_stop, |_| Reply::with(200, "", "old"));
    assert_eq!(get(&connections).await.unwrap(), "old");
    // The old server ends, and its successor removes the stale file.
    old_stop.drain();
    eventually("the old server has closed", || old.ended() == 1).await;
    std::fs::remove_file(&path).unwrap();
    let new_stop = ShutdownSignal::default();
    let new = Webapp::start_at_socket(&path, &new_stop, |_| Reply::with(200, "", "new"));
    for _ in 0..3 {
        assert_eq!(get(&connections).await.unwrap(), "new");
    }
    assert_eq!(new.connections(), 1);
}

#[tokio::test]
async fn kept_connections_to_a_replaced_socket_are_not_used_while_the_old_server_lives() {
    let setup = setup("w.sock").without_login();
    let path = socket(&setup).to_owned();
    let connections = connections(&setup);
    let stop = ShutdownSignal::default();
    let old = Webapp::start_at_socket(&path, &stop, |_| Reply::with(200, "", "old"));
    assert_eq!(get(&connections).await.unwrap(), "old");
    // Another file takes its place in one step.
    let next = setup.folder.0.join("next.sock");
    let _new = Webapp::start_at_socket(&next, &stop, |_| Reply::with(200, "", "new"));
    std::fs::rename(&next, &path).unwrap();
    let began = Instant::now();
    // Requests keep the connection busy; each succeeds.
    while get(&connections).await.unwrap() == "old" {
        assert!(began.elapsed() < Duration::from_secs(5), "still the old");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get(&connections).await.unwrap(), "new");
    eventually("the old connection is closed", || old.ended() == 1).await;
}

#[tokio::test]
async fn a_server_that_accepts_no_connections_is_a_timeout() {
    let mut setup = setup("w.sock").without_login();
    setup.settings.connect_timeout = Duration::from_millis(300);
    let path = socket(&setup).to_owned();
    let listener =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener
        .bind(&socket2::SockAddr::unix(&path).unwrap())
        .unwrap();
    listener.listen(1).unwrap();
    let mut queued = Vec::new();
    loop {
        let one = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        one.set_nonblocking(true).unwrap();
        if one
            .connect(&socket2::SockAddr::unix(&path).unwrap())
            .is_err()
        {
            break;
        }
        queued.push(one);
    }
    let (kind, text) = get(&connections(&setup)).await.unwrap_err();
    assert_eq!(kind, SendErrorKind::ConnectTimeout);
    assert!(
        text.contains("w.sock") && text.contains("queue is full"),
        "{text}"
    );
}
