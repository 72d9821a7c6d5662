//! The real session and renewer on paused time, against a simulated upstream that fails at
//! random: hours of requests in a moment. `properties` has the invariants.

mod properties;
mod simulated_upstream;
mod traffic;
