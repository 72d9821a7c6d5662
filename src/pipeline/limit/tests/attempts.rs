//! Logins and introspections: a failed attempt is charged to its sender.

use super::*;
use crate::pipeline::limit::{LoginAttempt, LoginLimited};

const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// The default limits: 60/m burst 20 by peer, 30/m burst 10 by name and peer.
fn default_limiter() -> Limiter {
    let quota = |requests, burst| Quota {
        requests,
        per: SECOND * 60,
        burst,
    };
    let limits = Limits {
        logins_by_peer: quota(60, 20),
        logins_by_name: quota(30, 10),
        ..limits(Vec::new())
    };
    Limiter::new(&limits, None, Metrics::new())
}

fn policy_of(outcome: Result<LoginAttempt, LoginLimited>) -> String {
    match outcome {
        Err(LoginLimited::TooMany(limit)) => limit.policy.to_string(),
        other => format!("{other:?}"),
    }
}

fn peer(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
}

/// Tries a wrong password; whether it was admitted to the password check.
async fn guess(limiter: &Limiter, peer: IpAddr, name: &str) -> bool {
    limiter.admit_login(peer, name).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn only_failed_logins_count_and_refused_ones_are_charged_to_their_sender() {
    let limiter = limiter(Vec::new());
    for _ in 0..100 {
        let good = limiter.admit_login(PEER, "fleet").await.unwrap();
        good.succeeded();
    }
    for _ in 0..3 {
        assert!(guess(&limiter, PEER, "anna").await);
    }
    let refused = limiter.admit_login(PEER, "anna").await;
    assert_eq!(policy_of(refused), "logins_by_name");
    assert!(
        guess(&limiter, OTHER_PEER, "anna").await,
        "another peer has its own bucket"
    );
    // The refusal was charged: one of this peer's five attempts is left.
    assert!(guess(&limiter, PEER, "bert").await);
    let refused = limiter.admit_login(PEER, "carl").await;
    assert_eq!(policy_of(refused), "logins_by_peer");
    // A name for which this peer has proven itself has its own bucket.
    assert!(limiter.admit_login(PEER, "fleet").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn concurrent_guesses_do_not_all_pass() {
    let limiter = limiter(Vec::new());
    let mut running = Vec::new();
    for _ in 0..50 {
        running.extend(limiter.admit_login(PEER, "anna").await);
    }
    assert_eq!(running.len(), 3);
}

/// 2 and 50 wrong passwords per second for 40 seconds, with one correct login per second.
#[tokio::test(start_paused = true)]
async fn a_flood_from_another_peer_refuses_no_correct_login() {
    for rate in [2, 50] {
        let limiter = default_limiter();
        let mut correct = 0;
        let mut wrong = 0;
        for _ in 0..40 {
            for _ in 0..rate {
                wrong += usize::from(guess(&limiter, PEER, "admin").await);
                advance(SECOND / rate).await;
            }
            if let Ok(good) = limiter.admit_login(VICTIM, "admin").await {
                good.succeeded();
                correct += 1;
            }
        }
        assert_eq!(correct, 40, "at {rate}/s");
        assert!(wrong <= 31, "{wrong} guesses passed at {rate}/s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_from_all_peers_does_not_lock_out_proven_peers() {
    let limiter = default_limiter();
    let good = limiter.admit_login(VICTIM, "admin").await.unwrap();
    good.succeeded();
    let mut passed = 0;
    for number in 0..1000 {
        passed += usize::from(guess(&limiter, peer(number), "admin").await);
    }
    assert_eq!(passed, 100, "all unproven peers together");
    let refused = limiter.admit_login(peer(2000), "admin").await;
    assert_eq!(policy_of(refused), "logins_of_strangers");
    for _ in 0..20 {
        let good = limiter.admit_login(VICTIM, "admin").await.unwrap();
        good.succeeded();
    }
    // A proven peer guesses no faster than any other.
    let mut guesses = 0;
    for _ in 0..20 {
        guesses += usize::from(guess(&limiter, VICTIM, "admin").await);
    }
    assert_eq!(guesses, 10);
    assert!(
        guess(&limiter, peer(2000), "bert").await,
        "other names are not affected"
    );
}

#[tokio::test(start_paused = true)]
async fn invented_names_and_addresses_of_one_site_share_one_bucket() {
    let limiter = default_limiter();
    let in_site =
        |number: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, number, 0, 0, 0, number));
    let mut passed = 0;
    for number in 0..2000 {
        let name = format!("user-{number}");
        passed += usize::from(guess(&limiter, in_site(number), &name).await);
    }
    assert_eq!(passed, 320, "sixteen times one /64");
    let other_site = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 1));
    assert!(guess(&limiter, other_site, "user-1").await);
}

#[tokio::test(start_paused = true)]
async fn logins_of_one_peer_do_not_take_all_slots_of_the_password_check() {
    let plenty = quota(1000, 1000);
    let limits = Limits {
        logins_by_peer: plenty,
        logins_by_name: plenty,
        ..limits(Vec::new())
    };
    let limiter = Limiter::new(&limits, None, Metrics::new());
    let mut attempts = Vec::new();
    for number in 0..16 {
        attempts.push(
            limiter
                .admit_login(PEER, &format!("user-{number}"))
                .await
                .unwrap(),
        );
    }
    let more = limiter.admit_login(PEER, "one more").await;
    assert!(
        matches!(more, Err(LoginLimited::Overloaded)),
        "after a wait"
    );
    attempts.push(limiter.admit_login(VICTIM, "admin").await.unwrap());
    // Unproven peers together leave a quarter of the slots to proven ones.
    attempts.pop().unwrap().succeeded();
    for number in 0..80 {
        attempts.push(limiter.admit_login(peer(number), "x").await.unwrap());
    }
    let more = limiter.admit_login(peer(100), "x").await;
    assert!(matches!(more, Err(LoginLimited::Overloaded)));
    assert!(limiter.admit_login(VICTIM, "admin").await.is_ok());
    attempts.clear();
    assert!(
        limiter.admit_login(PEER, "one more").await.is_ok(),
        "the slots are released"
    );
}

#[tokio::test(start_paused = true)]
async fn random_tokens_of_one_peer_leave_introspections_to_others() {
    let limits = Limits {
        unknown_tokens: quota(5, 20),
        unknown_tokens_by_peer: quota(1, 5),
        ..limits(Vec::new())
    };
    let limiter = Limiter::new(&limits, None, Metrics::new());
    let introspect = async |peer| limiter.admit_unknown_token(peer).await;
    for _ in 0..50 {
        let _bad = introspect(PEER).await;
    }
    let refused = introspect(PEER).await.unwrap_err();
    assert_eq!(&*refused.policy, "unknown_tokens_by_peer");
    for _ in 0..100 {
        introspect(VICTIM).await.unwrap().succeeded(); // accepted tokens cost nothing
    }
    for number in 0..100 {
        let _bad = introspect(peer(number)).await;
    }
    let refused = introspect(peer(200)).await.unwrap_err();
    assert_eq!(&*refused.policy, "unknown_tokens");
    assert!(
        introspect(VICTIM).await.is_ok(),
        "its tokens were accepted before"
    );
}
