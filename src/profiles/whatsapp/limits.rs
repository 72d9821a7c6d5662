//! Limits just below the Webapp's own (protocol sheet, section 5.2): 50 a second with bursts to
//! 150 for messages, 20 a second with bursts to 60 for each other node. Bursts are 140 and 54
//! here, so that requests which arrive closer together than they were sent, or are sent a second
//! time after a refused token, never make the Webapp refuse.

use crate::profiles::profile_route::ProfileLimit;

pub(super) const LIMITS: &[ProfileLimit] = &[
    ProfileLimit {
        name: "messages",
        class: Some("messages"),
        per_second: 50,
        burst: 140,
    },
    ProfileLimit {
        name: "nodes",
        class: None,
        per_second: 20,
        burst: 54,
    },
];
