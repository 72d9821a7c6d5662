//! Every node of the Webapp (protocol sheet, section 3).

use http::Method;

use crate::profiles::profile_route::{ProfileAccess, ProfileRoute, RouteNeeds, UsersCall};

use RouteNeeds::{Files, Media, Minutes, Monitoring, Nothing, Users};
use UsersCall::{Change, Create, Delete, Login, Logout, Show};

/// Route classes; routes of other first names are of the class `other`.
pub(super) const CLASSES: &[&str] = &[
    "messages",
    "contacts",
    "media",
    "users",
    "settings",
    "monitoring",
    "account",
    "certificates",
    "groups",
    "stickers",
];

/// Rows of: name, methods, path, access, needs.
macro_rules! nodes {
    ($($name:literal [$($method:ident)+] $path:literal $access:ident $needs:expr;)+) => {
        &[$(ProfileRoute {
            name: $name,
            methods: &[$(Method::$method),+],
            path: $path,
            access: ProfileAccess::$access,
            needs: $needs,
        }),+]
    };
}

pub(super) const ROUTES: &[ProfileRoute] = nodes! {
    "users.login"                    [POST]                  "/v1/users/login"                                       Open    Users(Login);
    "users.logout"                   [POST]                  "/v1/users/logout"                                      Token   Users(Logout);
    "users.create"                   [POST]                  "/v1/users"                                             Admin   Users(Create);
    "users.show"                     [GET]                   "/v1/users/{name}"                                      Own     Users(Show);
    "users.change"                   [PUT]                   "/v1/users/{name}"                                      Own     Users(Change);
    "users.delete"                   [DELETE]                "/v1/users/{name}"                                      Admin   Users(Delete);
    "account.register"               [POST DELETE]           "/v1/account"                                           Service Minutes(2);
    "account.verify"                 [POST]                  "/v1/account/verify"                                    Service Minutes(2);
    "account.shards"                 [GET POST]              "/v1/account/shards"                                    Service Minutes(5);
    "settings.application"           [GET PATCH DELETE]      "/v1/settings/application"                              Service Nothing;
    "settings.media_providers"       [GET POST]              "/v1/settings/application/media/providers"              Service Nothing;
    "settings.media_provider"        [DELETE]                "/v1/settings/application/media/providers/{name}"       Service Nothing;
    "settings.backup"                [POST]                  "/v1/settings/backup"                                   Service Minutes(10);
    "settings.restore"               [POST]                  "/v1/settings/restore"                                  Service Minutes(10);
    "settings.business_profile"      [GET POST]              "/v1/settings/business/profile"                         Admin   Nothing;
    "settings.compliance"            [GET POST]              "/v1/settings/business/compliance_info"                 Admin   Nothing;
    "settings.about"                 [GET PATCH]             "/v1/settings/profile/about"                            Admin   Nothing;
    "settings.photo"                 [GET POST DELETE]       "/v1/settings/profile/photo"                            Admin   Files;
    "settings.two_step"              [POST DELETE]           "/v1/settings/account/two-step"                         Service Nothing;
    "contacts.check"                 [POST]                  "/v1/contacts"                                          Service Minutes(2);
    "contacts.identity"              [GET PUT]               "/v1/contacts/{wa_id}/identity"                         Service Nothing;
    "messages.send"                  [POST]                  "/v1/messages"                                          Service Nothing;
    "messages.mark"                  [PUT]                   "/v1/messages/{id}"                                     Service Nothing;
    "media.upload"                   [POST]                  "/v1/media"                                             Service Media;
    "media.download"                 [GET]                   "/v1/media/{id}"                                        Service Media;
    "media.delete"                   [DELETE]                "/v1/media/{id}"                                        Service Nothing;
    "stickers.packs"                 [GET POST]              "/v1/stickerpacks"                                      Service Nothing;
    "stickers.pack"                  [GET PATCH DELETE]      "/v1/stickerpacks/{pack}"                               Service Nothing;
    "stickers.list"                  [GET POST]              "/v1/stickerpacks/{pack}/stickers"                      Service Nothing;
    "stickers.one"                   [GET PATCH DELETE]      "/v1/stickerpacks/{pack}/stickers/{index}"              Service Nothing;
    "groups.list"                    [GET POST]              "/v1/groups"                                            Service Nothing;
    "groups.one"                     [GET PUT DELETE]        "/v1/groups/{id}"                                       Service Nothing;
    "groups.admins"                  [PATCH DELETE]          "/v1/groups/{id}/admins"                                Service Nothing;
    "groups.icon"                    [GET POST DELETE]       "/v1/groups/{id}/icon"                                  Service Files;
    "groups.invite"                  [GET DELETE]            "/v1/groups/{id}/invite"                                Service Nothing;
    "groups.leave"                   [POST]                  "/v1/groups/{id}/leave"                                 Service Nothing;
    "groups.participants"            [DELETE]                "/v1/groups/{id}/participants"                          Service Nothing;
    "certificates.external"          [POST]                  "/v1/certificates/external"                             Admin   Files;
    "certificates.external_ca"       [GET]                   "/v1/certificates/external/ca"                          Admin   Nothing;
    "certificates.webhooks_ca"       [GET POST DELETE]       "/v1/certificates/webhooks/ca"                          Admin   Files;
    "monitoring.health"              [GET]                   "/v1/health"                                            Service Monitoring;
    "monitoring.metrics"             [GET]                   "/metrics"                                              Service Monitoring;
    "monitoring.stats_app"           [GET]                   "/v1/stats/app"                                         Service Monitoring;
    "monitoring.stats_app_internal"  [GET]                   "/v1/stats/app/internal"                                Service Monitoring;
    "monitoring.stats_db"            [GET]                   "/v1/stats/db"                                          Service Monitoring;
    "monitoring.stats_db_internal"   [GET]                   "/v1/stats/db/internal"                                 Service Monitoring;
    "support.show"                   [GET]                   "/v1/support"                                           Service Minutes(2);
    "services.gc"                    [PUT]                   "/v1/services/message/gc"                               Service Minutes(10);
};
