use std::collections::HashSet;
use std::time::Duration;

use tokio::runtime::Handle;

use super::*;
use crate::config::UnknownTokens;
use crate::config::{
    self, DirectoryKind as Owner, FirstAdmin as FirstAdminSettings, FirstPassword,
};
use crate::identity::{UnusableHash, hash_password};
use crate::secret::SecretSource;
use crate::store::Store;

fn settings(first_admin: Option<FirstAdminSettings>) -> config::UsersConfig {
    config::UsersConfig {
        directory: Owner::Gateway,
        unknown_tokens: UnknownTokens::Reject,
        token_lifetime: Duration::from_secs(60),
        max_tokens_per_user: 10,
        at_token_cap: config::AtTokenCap::EndOldest,
        on_password_change: config::OnPasswordChange::EndOthers,
        max_tokens: 100,
        first_admin,
        hashing_slots: 2,
        ..config::UsersConfig::default()
    }
}

async fn open_with(
    first_admin: Option<FirstAdminSettings>,
) -> Result<(UserDirectory, FirstAdminStatus), Error> {
    let store = Arc::new(Store::Memory);
    UserDirectory::open(&settings(first_admin), hasher(), store, Vec::new()).await
}

fn hasher() -> Hasher {
    Hasher::new(2, Handle::current())
}

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

fn admin(password: FirstPassword, must_change: bool) -> Option<FirstAdminSettings> {
    Some(FirstAdminSettings {
        username: "admin".into(),
        password,
        must_change,
    })
}

async fn open(must_change: bool) -> UserDirectory {
    let hash = FirstPassword::Hash(hash_password(&secret("Passw0rd!")).unwrap());
    let opened = open_with(admin(hash, must_change)).await;
    opened.unwrap().0
}

async fn plain(text: &str) -> Result<(UserDirectory, FirstAdminStatus), Error> {
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let file = std::env::temp_dir().join(format!("tollgate-admin-{}-{digits}", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let password = FirstPassword::Plain(SecretSource::File(file.clone()));
    let opened = open_with(admin(password, false)).await;
    std::fs::remove_file(file).unwrap();
    opened
}

#[tokio::test]
async fn without_a_first_admin_one_is_created_and_its_password_returned_once() {
    let (users, generated) = open_with(None).await.unwrap();
    let FirstAdminStatus::Generated(generated) = generated else {
        panic!("{generated:?}");
    };
    assert_eq!(generated.username, "admin");
    assert!(profiles::check_password(&generated.password).is_ok());
    let verified = users.verify("admin", generated.password).await.unwrap();
    assert_eq!((verified.role, verified.must_change), (Role::Admin, false));
}

#[test]
fn a_generated_password_meets_the_rule_and_never_repeats() {
    let made: HashSet<String> = (0..200)
        .map(|_| first_admin::random_password().expose().to_owned())
        .collect();
    assert_eq!(made.len(), 200);
    for password in made {
        assert!(profiles::check_password(&Secret::new(password)).is_ok());
    }
}

#[tokio::test]
async fn the_first_admin_comes_from_a_secret_or_a_hash_and_a_simple_password_is_refused() {
    let (users, first) = plain("Passw0rd!").await.unwrap();
    assert!(matches!(first, FirstAdminStatus::Configured { .. }));
    assert_eq!(first.username(), "admin");
    assert!(users.verify("admin", secret("Passw0rd!")).await.is_ok());
    assert!(matches!(plain("secret").await, Err(Error::Password(_))));
    let hash = FirstPassword::Hash("secret".into());
    let opened = open_with(admin(hash, false)).await;
    assert!(matches!(opened, Err(Error::Hash(UnusableHash::NotPhc(_)))));
    let missing = FirstPassword::Plain(SecretSource::File("/nonexistent/password".into()));
    let opened = open_with(admin(missing, false)).await;
    assert!(matches!(opened, Err(Error::Secret(_))));
}

#[tokio::test]
async fn an_unknown_user_and_a_wrong_password_are_distinguished_internally() {
    let users = open(false).await;
    let refused = users.verify("unknown", secret("Passw0rd!")).await;
    assert!(matches!(refused, Err(LoginDenied::Unknown)));
    let refused = users.verify("admin", secret("passw0rd!")).await;
    assert!(matches!(refused, Err(LoginDenied::WrongPassword)));
    let long = secret(&"x".repeat(MAX_PASSWORD_BYTES + 1));
    let refused = users.verify("unknown", long).await;
    assert!(matches!(refused, Err(LoginDenied::WrongPassword)));
}

#[tokio::test]
async fn a_user_is_created_shown_and_removed() {
    let users = open(false).await;
    users
        .create("anna", secret("Passw0rd!"), Role::User)
        .await
        .unwrap();
    assert_eq!(users.show("anna"), Some(Role::User));
    let verified = users.verify("anna", secret("Passw0rd!")).await.unwrap();
    assert_eq!(verified.role, Role::User);
    let again = users.create("anna", secret("Passw0rd!"), Role::Admin).await;
    assert!(matches!(again, Err(CreateError::Exists)));
    let bad = users.create("a:na", secret("Passw0rd!"), Role::User).await;
    assert!(matches!(bad, Err(CreateError::BadName(_))));
    let bad = users.create("bert", secret("password"), Role::User).await;
    assert!(matches!(bad, Err(CreateError::BadPassword(_))));
    users.remove("anna").await.unwrap();
    assert_eq!(users.show("anna"), None);
    assert_eq!(users.remove("anna").await, Err(RemoveError::Unknown));
    let refused = users.verify("anna", secret("Passw0rd!")).await;
    assert!(matches!(refused, Err(LoginDenied::Unknown)));
}

#[tokio::test]
async fn the_first_admin_cannot_be_deleted() {
    let users = open(false).await;
    assert_eq!(users.remove("admin").await, Err(RemoveError::FirstAdmin));
    assert_eq!(users.show("admin"), Some(Role::Admin));
}

#[tokio::test]
async fn a_forced_change_ends_with_a_new_password() {
    let users = open(true).await;
    let verified = users.verify("admin", secret("Passw0rd!")).await.unwrap();
    assert!(verified.must_change);
    let by = ChangedBy::User(&verified);
    let weak = users.change_password("admin", secret("weak"), by).await;
    assert!(matches!(weak, Err(ChangeError::BadPassword(_))));
    users
        .change_password("admin", secret("N3w-Passw0rd"), by)
        .await
        .unwrap();
    let old = users.verify("admin", secret("Passw0rd!")).await;
    assert!(matches!(old, Err(LoginDenied::WrongPassword)));
    let new = users.verify("admin", secret("N3w-Passw0rd")).await.unwrap();
    assert!(!new.must_change);
    let none = users
        .change_password("unknown", secret("N3w-Passw0rd"), ChangedBy::Admin)
        .await;
    assert!(matches!(none, Err(ChangeError::Unknown)));
}

#[tokio::test]
async fn a_password_change_begun_before_an_admins_reset_is_refused_after_it() {
    let users = open(false).await;
    let verified = users.verify("admin", secret("Passw0rd!")).await.unwrap();
    users
        .change_password("admin", secret("Reset-by-adm1n"), ChangedBy::Admin)
        .await
        .unwrap();
    let by = ChangedBy::User(&verified);
    let late = users.change_password("admin", secret("Th1ef!!!"), by).await;
    assert!(matches!(late, Err(ChangeError::Superseded)));
    assert!(
        users
            .verify("admin", secret("Reset-by-adm1n"))
            .await
            .is_ok()
    );
}

/// Starts `slow`, lets it read the directory and wait for the only hashing slot, runs
/// `meanwhile`, and lets it finish.
async fn overtaken<T>(
    users: &UserDirectory,
    slow: impl Future<Output = T>,
    meanwhile: impl FnOnce(),
) -> T {
    let mut slow = Box::pin(slow);
    let slots = users.hasher.all_slots().await;
    std::future::poll_fn(|context| {
        assert!(slow.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    meanwhile();
    drop(slots);
    slow.await
}

#[tokio::test]
async fn a_login_is_refused_if_its_user_is_deleted_or_changed_meanwhile() {
    let users = open(false).await;
    let make = |name: &'static str| users.create(name, secret("Passw0rd!"), Role::User);
    make("anna").await.unwrap();
    let login = users.verify("anna", secret("Passw0rd!"));
    let refused = overtaken(&users, login, || {
        users.write().users.remove("anna");
    });
    assert!(matches!(refused.await, Err(LoginDenied::Unknown)));

    make("anna").await.unwrap();
    let login = users.verify("anna", secret("Passw0rd!"));
    let refused = overtaken(&users, login, || {
        users
            .write()
            .users
            .get_mut("anna")
            .unwrap()
            .revision
            .changes += 1;
    });
    assert!(matches!(refused.await, Err(LoginDenied::WrongPassword)));
}

#[tokio::test]
async fn a_password_change_begun_before_a_deletion_does_not_apply_to_the_new_user() {
    let users = open(false).await;
    let make = || users.create("anna", secret("Passw0rd!"), Role::User);
    make().await.unwrap();
    let change = users.change_password("anna", secret("N3w-Passw0rd"), ChangedBy::Admin);
    let refused = overtaken(&users, change, || {
        users
            .write()
            .users
            .get_mut("anna")
            .unwrap()
            .revision
            .created += 1;
    });
    assert!(matches!(refused.await, Err(ChangeError::Unknown)));
    assert!(users.verify("anna", secret("Passw0rd!")).await.is_ok());
}

#[tokio::test]
async fn one_of_two_concurrent_creations_succeeds() {
    let users = open(false).await;
    let (one, other) = tokio::join!(
        users.create("anna", secret("Passw0rd!"), Role::User),
        users.create("anna", secret("0ther-Passw0rd"), Role::User),
    );
    assert!(one.is_ok() != other.is_ok());
}

#[tokio::test]
async fn an_outdated_hash_is_replaced_and_both_logins_at_once_succeed() {
    let users = open(false).await;
    let old = Arc::new(crate::identity::password::tests::cheap_hash("Passw0rd!"));
    users.write().users.get_mut("admin").unwrap().hash = Arc::clone(&old);
    let (one, other) = tokio::join!(
        users.verify("admin", secret("Passw0rd!")),
        users.verify("admin", secret("Passw0rd!")),
    );
    assert!(one.is_ok() && other.is_ok());
    let now = Arc::clone(&users.read().users["admin"].hash);
    assert_ne!(now, old);
    assert!(users.verify("admin", secret("Passw0rd!")).await.is_ok());
}
