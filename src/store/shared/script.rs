//! The scripts, one a change: each compares and changes in one step on the server, so
//! that no two gates can decide on the same thing at once.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                include_str!("scripts/prelude.lua"),
                include_str!($file)
            ))
        });)*
    };
}

scripts! {
    INSERT = "scripts/insert.lua";
    FIND = "scripts/find.lua";
    END = "scripts/end.lua";
    REVOKE = "scripts/revoke.lua";
    ENTRY = "scripts/entry.lua";
    MERGE = "scripts/merge.lua";
    LOGIN = "scripts/login.lua";
    LOCK = "scripts/lock.lua";
    PUBLISH = "scripts/publish.lua";
    REFUSE = "scripts/refuse.lua";
    LEASE = "scripts/lease.lua";
    MERGE_LEASE = "scripts/merge_lease.lua";
}

/// Stand alone: they need no store, or find out which one it is.
pub(super) static HELLO: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/hello.lua")));
pub(super) static GATES: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/gates.lua")));
pub(super) static PERMITS: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("scripts/permits.lua")));
