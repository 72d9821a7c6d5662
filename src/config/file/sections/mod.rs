//! One file per section of the configuration: from its table to checked values. Each has one
//! function that `file` calls, named after the section.

pub(super) mod drain_section;
pub(super) mod emulator_section;
mod endpoint_keys;
mod hidden_routes;
pub(super) mod http_section;
pub(super) mod limits_section;
pub(super) mod listener_section;
pub(super) mod log_section;
mod login_keys;
mod login_names;
mod login_request_keys;
mod login_response_keys;
mod login_section;
mod login_values;
pub(super) mod operator_section;
pub(super) mod profile_routing;
mod proxy_keys;
pub(super) mod route_section;
mod route_values;
mod service_login;
mod shared_store_section;
pub(super) mod store_section;
mod upstream_address_keys;
pub(super) mod upstream_section;
pub(super) mod users_section;
pub(super) mod workers;
