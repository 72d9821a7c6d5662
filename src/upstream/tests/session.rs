//! Renewal, single flight and replacement of leases.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::server::{Reply, Webapp, permits};
use super::{PATH, TEST_TIMEOUT, UpstreamSetup, eventually, refusal, replace, retry};
use crate::clock::Deadline;
use crate::metrics::LoginOutcome;
use crate::secret::Secret;
use crate::upstream::{Lease, LoginFailure, Session};

/// A lease without waiting; the test fails if there is none.
async fn at_once(session: &Session) -> Arc<Lease> {
    let lease = timeout(Duration::from_millis(200), session.lease()).await;
    lease.expect("a valid lease never waits").unwrap()
}

fn hundred(session: &Arc<Session>, old: Option<&Arc<Lease>>) -> JoinSet<u64> {
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (session, old) = (Arc::clone(session), old.cloned());
        callers.spawn(async move {
            let lease = match &old {
                Some(old) => replace(&session, old).await,
                None => session.lease().await,
            };
            lease.unwrap().generation
        });
    }
    callers
}

#[tokio::test]
async fn a_hundred_requests_share_one_login() {
    let release = permits();
    let server_permits = Arc::clone(&release);
    let webapp = Webapp::start(move |_| Reply::login("tok", 600).after(&server_permits)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    assert!(!session.is_ready());
    let callers = hundred(&session, None);
    let metrics = &setup.metrics;
    eventually("all requests wait", || {
        metrics.upstream("main").session_requests_waiting.get() == 100
    })
    .await;
    assert_eq!(session.status().to_string(), "upstream login: logging in");
    release.add_permits(1);
    assert!(callers.join_all().await.iter().all(|&number| number == 1));
    assert_eq!(webapp.requests(), 1);
    assert_eq!(metrics.upstream("main").session_requests_waiting.get(), 0);
    assert_eq!(metrics.upstream("main").session_waits.get(), 100);
    assert_eq!(session.status().to_string(), "upstream login: ready");
    let call = &webapp.calls()[0];
    assert!(call.has_line("POST /v1/users/login HTTP/1.1"));
    assert!(call.has_line("Authorization: Basic Z2F0ZXdheTpyaWdodA=="));
    let lease = at_once(&session).await;
    assert_eq!(lease.headers()[0].1, "Bearer tok");
    assert!(lease.headers()[0].1.is_sensitive());
    assert_eq!(lease.secret.expose(), "tok");
    assert!(!format!("{lease:?}").contains("tok"), "{lease:?}");
}

#[tokio::test]
async fn a_lease_is_renewed_early_and_no_request_waits_for_it() {
    let release = permits();
    let server_permits = Arc::clone(&release);
    let webapp = Webapp::start(move |call| match call.number {
        1 => Reply::login("one", 5),
        _ => Reply::login("two", 600).after(&server_permits),
    })
    .await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().renew_at = 0.1;
    let session = setup.session();
    session.lease().await.unwrap();
    let waits = setup.metrics.upstream("main").session_waits.get();
    eventually("renewal begins", || webapp.requests() == 2).await;
    assert_eq!(at_once(&session).await.generation, 1);
    release.add_permits(1);
    eventually("renewed", || session.newest().unwrap().generation == 2).await;
    // Without a probe a request tests the new token; until then the old one stays in use.
    assert_eq!(at_once(&session).await.generation, 1);
    let trial = session.lease_for(|| PATH, || true).unwrap();
    assert_eq!(trial.generation, 2);
    session.note_accepted(&trial, PATH, false);
    assert_eq!(at_once(&session).await.generation, 2);
    assert_eq!(setup.metrics.upstream("main").session_waits.get(), waits);
    session.refresh_gauges();
    assert_eq!(setup.metrics.upstream("main").session_live_tokens.get(), 2);
    assert!(
        setup
            .metrics
            .upstream("main")
            .session_seconds_to_expiry
            .get()
            > 500
    );
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_lease_until_it_expires() {
    let webapp = Webapp::start(|call| match call.number {
        1 => Reply::login("one", 3),
        _ => Reply::with(500, "", "oh"),
    })
    .await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().renew_at = 0.1;
    let session = setup.session();
    let lease = session.lease().await.unwrap();
    eventually("renewal fails", || {
        setup
            .metrics
            .upstream("main")
            .session_logins
            .value(LoginOutcome::Refused)
            > 0
    })
    .await;
    assert_eq!(at_once(&session).await.generation, 1);
    assert!(
        session
            .status()
            .to_string()
            .contains("cannot renew: refused with status 500")
    );
    eventually("the lease ends", || lease.ends().has_passed()).await;
    eventually("the expired lease is not used", || !session.is_ready()).await;
    let no = refusal(&session).await;
    assert!(matches!(no.why, LoginFailure::Refused(status) if status == 500));
    assert!(no.retry_after >= Duration::from_secs(1));
    session.refresh_gauges();
    assert_eq!(setup.metrics.upstream("main").session_up.get(), 0);
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .session_seconds_to_expiry
            .get(),
        0
    );
}

#[tokio::test]
async fn concurrent_refusals_of_a_lease_cause_one_login() {
    let webapp = Webapp::start(|call| Reply::login(&format!("tok{}", call.number), 600)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    let old = session.lease().await.unwrap();
    let numbers = hundred(&session, Some(&old)).join_all().await;
    assert!(numbers.iter().all(|&number| number == 2), "{numbers:?}");
    assert_eq!(webapp.requests(), 2);
    // Late refusals concern the old lease.
    assert_eq!(replace(&session, &old).await.unwrap().generation, 2);
    assert_eq!(webapp.requests(), 2);
}

#[tokio::test]
async fn repeated_refusals_cause_no_login_storm_and_keep_the_lease_in_use() {
    let webapp = Webapp::start(|_| Reply::login("tok", 600)).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().min_login_interval = Duration::from_secs(30);
    let session = setup.session();
    let old = session.lease().await.unwrap();
    let mut refused = JoinSet::new();
    for _ in 0..50 {
        let (session, old) = (Arc::clone(&session), Arc::clone(&old));
        refused.spawn(async move { retry(&session, &old, |_| false).await.unwrap() });
    }
    assert!(refused.join_all().await.iter().all(Option::is_none));
    assert_eq!(at_once(&session).await.generation, 1);
    assert_eq!(webapp.requests(), 1);
}

#[tokio::test]
async fn a_lease_expires_before_its_token_to_the_fraction_of_a_second() {
    // Expiry and `Date` are in whole seconds: up to one of these four may have passed.
    let webapp = Webapp::start(|_| Reply::login("tok", 4)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let lease = setup.session().lease().await.unwrap();
    assert!(lease.ends().left() <= Duration::from_secs(3));
    assert!(!lease.ends().has_passed());
}

#[tokio::test]
async fn a_login_that_is_due_soon_is_waited_for() {
    let webapp = Webapp::start(|call| Reply::login(&format!("tok{}", call.number), 600)).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().min_login_interval = Duration::from_millis(1500);
    let session = setup.session();
    let old = session.lease().await.unwrap();
    let numbers = hundred(&session, Some(&old)).join_all().await;
    assert!(numbers.iter().all(|&number| number == 2), "{numbers:?}");
    assert_eq!(webapp.requests(), 2);
}

#[tokio::test]
async fn refusals_spend_at_most_half_of_the_budget() {
    let webapp = Webapp::start(|_| Reply::login("tok", 600)).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().logins_per_hour = 3;
    let session = setup.session();
    let first = session.lease().await.unwrap();
    let second = replace(&session, &first).await.unwrap();
    assert_eq!(webapp.requests(), 2);
    let postponed = retry(&session, &second, |_| false).await.unwrap_err();
    assert_eq!(
        postponed.why,
        LoginFailure::Budget,
        "the path is known to be good"
    );
    assert_eq!(webapp.requests(), 2, "one login is left, for a renewal");
    assert_eq!(at_once(&session).await.generation, 2);
}

#[tokio::test]
async fn a_cancelled_request_does_not_cancel_the_login() {
    let release = permits();
    let server_permits = Arc::clone(&release);
    let webapp = Webapp::start(move |_| Reply::login("tok", 600).after(&server_permits)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    let impatient = timeout(Duration::from_millis(100), session.lease()).await;
    assert!(impatient.is_err());
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .session_requests_waiting
            .get(),
        0
    );
    eventually("the login is in progress", || webapp.requests() == 1).await;
    release.add_permits(1);
    assert_eq!(session.lease().await.unwrap().generation, 1);
    assert_eq!(webapp.requests(), 1);
}

#[tokio::test]
async fn a_token_requested_before_a_revocation_is_not_used_after_it() {
    let release = permits();
    let server_permits = Arc::clone(&release);
    let webapp = Webapp::start(move |call| match call.number {
        1 => Reply::login("one", 5),
        2 => Reply::login("revoked", 600).after(&server_permits),
        _ => Reply::login("three", 600),
    })
    .await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().renew_at = 0.1;
    let session = setup.session();
    let old = session.lease().await.unwrap();
    eventually("renewal begins", || webapp.requests() == 2).await;
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (session, old) = (Arc::clone(&session), Arc::clone(&old));
        let is_good = |lease: &Lease| lease.secret.expose() == "three";
        callers.spawn(async move { retry(&session, &old, is_good).await.unwrap().unwrap() });
    }
    let waiting = &setup.metrics.upstream("main").session_requests_waiting;
    eventually("all requests wait", || waiting.get() == 100).await;
    release.add_permits(1);
    let leases = callers.join_all().await;
    assert!(leases.iter().all(|lease| lease.generation == 3));
    assert_eq!(session.lease().await.unwrap().secret.expose(), "three");
    assert_eq!(webapp.requests(), 3);
}

#[tokio::test]
async fn with_a_single_active_token_the_login_in_progress_is_the_replacement() {
    let release = permits();
    let server_permits = Arc::clone(&release);
    let webapp = Webapp::start(move |call| match call.number {
        1 => Reply::login("one", 5),
        _ => Reply::login("two", 600).after(&server_permits),
    })
    .await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().renew_at = 0.1;
    setup.login().single_active_token = true;
    let session = setup.session();
    let old = session.lease().await.unwrap();
    eventually("renewal begins", || webapp.requests() == 2).await;
    // The upstream has ended the old token; its response is still to come.
    let callers = hundred(&session, Some(&old));
    let waiting = &setup.metrics.upstream("main").session_requests_waiting;
    eventually("all requests wait", || waiting.get() == 100).await;
    release.add_permits(1);
    assert!(callers.join_all().await.iter().all(|&number| number == 2));
    assert_eq!(session.lease().await.unwrap().secret.expose(), "two");
    assert_eq!(webapp.requests(), 2);
    session.refresh_gauges();
    assert_eq!(setup.metrics.upstream("main").session_live_tokens.get(), 1);
}

#[tokio::test]
async fn a_lease_that_expired_during_a_suspension_is_noticed_at_use() {
    let webapp = Webapp::start(|_| Reply::login("tok", 600)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    let lease = session.lease().await.unwrap();
    // As after a suspension of the host: the renewal is due in minutes, the expiry has passed.
    let over = Deadline::after(Duration::ZERO);
    let ended = Lease::new(lease.generation, over, Vec::new(), Secret::new("tok"));
    session.current.store(Some(Arc::new(ended)));
    let fresh = timeout(TEST_TIMEOUT, session.lease())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(fresh.generation, 2);
}

#[tokio::test]
async fn a_wrong_upstream_clock_changes_nothing() {
    for skew in [-3600, 3600] {
        let webapp = Webapp::start(move |_| Reply::login_at("tok", 600, skew)).await;
        let setup = UpstreamSetup::of(webapp.address);
        let session = setup.session();
        let left = session.lease().await.unwrap().ends().left();
        assert!(left > Duration::from_secs(590), "{skew}: {left:?}");
        assert!(left <= Duration::from_secs(600), "{skew}: {left:?}");
        let shown = setup
            .metrics
            .upstream("main")
            .session_clock_skew_seconds
            .get();
        assert!((shown - skew).abs() <= 1, "{shown}");
    }
}

#[tokio::test]
async fn a_drain_finishes_the_login_that_requests_wait_for() {
    let release = permits();
    let server_permits = Arc::clone(&release);
    let webapp = Webapp::start(move |_| Reply::login("tok", 600).after(&server_permits)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let upstream = setup.open().unwrap();
    let session = Arc::clone(upstream.shared_session().unwrap());
    let callers = hundred(&session, None);
    eventually("the login is in progress", || webapp.requests() == 1).await;
    setup.scope.stop.drain();
    release.add_permits(1);
    assert!(callers.join_all().await.iter().all(|&number| number == 1));
    timeout(TEST_TIMEOUT, session.ended()).await.unwrap();
    // The lease is valid until it expires, but it is not replaced any more.
    let lease = at_once(&session).await;
    let no = replace(&session, &lease).await.unwrap_err();
    assert_eq!(no.why, LoginFailure::Stopping);
    timeout(TEST_TIMEOUT, setup.scope.tasks.wait())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_abort_ends_a_login_in_progress_at_once() {
    let never = permits();
    let webapp = Webapp::start(move |_| Reply::login("tok", 600).after(&never)).await;
    let setup = UpstreamSetup::of(webapp.address);
    let upstream = setup.open().unwrap();
    eventually("the login is in progress", || webapp.requests() == 1).await;
    let session = upstream.shared_session().unwrap();
    let (no, ()) = tokio::join!(session.lease(), async { setup.scope.stop.abort() });
    assert_eq!(no.unwrap_err().why, LoginFailure::Stopping);
    timeout(TEST_TIMEOUT, setup.scope.tasks.wait())
        .await
        .unwrap();
}
