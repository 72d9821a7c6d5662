//! The session and its renewer as they are, on paused time, against a simulated upstream that
//! misbehaves at random: hours of requests in a moment. What must hold is in `properties`.

mod properties;
mod simulated_upstream;
mod traffic;
