//! The Webapp's rate limits (protocol sheet, section 5.2): 50 messages a second with a burst of 150,
//! for every other node 20 and 60.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::node_routes::Node;

const MESSAGES: Quota = quota(50, 150);
const OTHERS: Quota = quota(20, 60);

pub(super) struct NodeRateLimits {
    messages: DefaultDirectRateLimiter,
    others: DefaultKeyedRateLimiter<Node>,
}

impl NodeRateLimits {
    pub(super) fn new() -> Self {
        Self {
            messages: RateLimiter::direct(MESSAGES),
            others: RateLimiter::keyed(OTHERS),
        }
    }

    pub(super) fn admit(&self, node: Node) -> bool {
        match node {
            Node::Messages => self.messages.check().is_ok(),
            other => self.others.check_key(&other).is_ok(),
        }
    }
}

const fn quota(per_second: u32, burst: u32) -> Quota {
    let (Some(rate), Some(burst)) = (NonZeroU32::new(per_second), NonZeroU32::new(burst)) else {
        panic!("a rate of zero");
    };
    Quota::per_second(rate).allow_burst(burst)
}
