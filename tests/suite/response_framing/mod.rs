//! Responses of the upstream that are badly framed, incomplete, early or slow.

mod broken;
mod cases;
mod early_responses;
mod framing;
mod generated;
mod relayed;
mod slow;
