//! Calls about users: login, logout, and the users themselves. `users_call` is the stage; it answers
//! from the gateway's own directory (`own_users`) or relays the call to the upstream and applies what
//! its response means to the tokens here (`relay`). Start with `users_call`.

pub(super) mod own_users;
pub(super) mod relay;
#[cfg(test)]
pub(super) mod user_paths;
pub(super) mod users_call;
