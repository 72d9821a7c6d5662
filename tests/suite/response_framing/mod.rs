//! Responses of the upstream that are framed badly, break off, come early or slowly.

mod broken;
mod cases;
mod early_responses;
mod framing;
mod generated;
mod relayed;
mod slow;
