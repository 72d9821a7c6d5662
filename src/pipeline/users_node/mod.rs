//! TODO

pub(super) mod attempted_user;
pub(super) mod own_users;
pub(super) mod relay;
#[cfg(test)]
pub(super) mod user_paths;
pub(super) mod users_call;
