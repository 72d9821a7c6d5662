//! The Lua scripts. Each one checks and changes in one step on the server, so that no two gateways
//! can decide the same thing at once.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($name:ident = $($part:literal)+;)*) => {
        $(pub(in crate::store::shared) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!($(include_str!(concat!("scripts/", $part, ".lua"))),+))
        });)*
    };
}

scripts! {
    INSERT = "prelude" "insert";
    FIND = "prelude" "find";
    END = "prelude" "end";
    REVOKE = "prelude" "revoke";
    ENTRY = "prelude" "entry";
    MERGE = "prelude" "merge";
    LOGIN = "prelude" "login";
    LOCK = "prelude" "lock";
    PUBLISH = "prelude" "publish";
    REFUSE = "prelude" "refuse";
    LEASE = "prelude" "lease";
    MERGE_LEASE = "prelude" "merge_lease";
    // Without the prelude: these do not check which store it is.
    HELLO = "hello";
    GATES = "gates";
    PERMITS = "permits";
}
