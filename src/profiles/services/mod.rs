//! Logins of services, as the file would write them. Each text is what stands under `[upstream.NAME]`;
//! `config` reads it with the values that the operator gives.

/// The login of one service.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceLogin {
    /// As the key `login.profile` spells it; unique.
    pub name: &'static str,
    /// TOML: comments that say what it is and which values it needs, then the keys.
    pub text: &'static str,
}

/// Every service, by its name.
pub static SERVICE_LOGINS: &[ServiceLogin] = &[
    ServiceLogin {
        name: "airflow",
        text: include_str!("airflow.toml"),
    },
    ServiceLogin {
        name: "argocd",
        text: include_str!("argocd.toml"),
    },
    ServiceLogin {
        name: "bigip",
        text: include_str!("bigip.toml"),
    },
    ServiceLogin {
        name: "catalyst_center",
        text: include_str!("catalyst_center.toml"),
    },
    ServiceLogin {
        name: "keycloak",
        text: include_str!("keycloak.toml"),
    },
    ServiceLogin {
        name: "keystone",
        text: include_str!("keystone.toml"),
    },
    ServiceLogin {
        name: "label_studio",
        text: include_str!("label_studio.toml"),
    },
    ServiceLogin {
        name: "nifi_registry",
        text: include_str!("nifi_registry.toml"),
    },
    ServiceLogin {
        name: "nocodb",
        text: include_str!("nocodb.toml"),
    },
    ServiceLogin {
        name: "node_red",
        text: include_str!("node_red.toml"),
    },
    ServiceLogin {
        name: "oauth2",
        text: include_str!("oauth2.toml"),
    },
    ServiceLogin {
        name: "oauth2_post",
        text: include_str!("oauth2_post.toml"),
    },
    ServiceLogin {
        name: "pfsense",
        text: include_str!("pfsense.toml"),
    },
    ServiceLogin {
        name: "portainer",
        text: include_str!("portainer.toml"),
    },
    ServiceLogin {
        name: "rancher",
        text: include_str!("rancher.toml"),
    },
    ServiceLogin {
        name: "simplejwt",
        text: include_str!("simplejwt.toml"),
    },
    ServiceLogin {
        name: "strapi",
        text: include_str!("strapi.toml"),
    },
    ServiceLogin {
        name: "superset",
        text: include_str!("superset.toml"),
    },
    ServiceLogin {
        name: "synapse",
        text: include_str!("synapse.toml"),
    },
    ServiceLogin {
        name: "turn_io",
        text: include_str!("turn_io.toml"),
    },
];

impl ServiceLogin {
    pub fn named(name: &str) -> Option<&'static Self> {
        SERVICE_LOGINS.iter().find(|service| service.name == name)
    }

    /// Its first sentences: what it is and what it needs.
    pub fn summary(&self) -> String {
        let comments = self.text.lines().map_while(|line| line.strip_prefix("# "));
        comments.collect::<Vec<_>>().join(" ")
    }

    /// The same login written out, for an upstream of this name.
    pub fn as_config(&self, upstream: &str) -> String {
        let section = format!("[upstream.{upstream}.login");
        let text = self.text.replace("[login", &section);
        let url = "url = \"https://service.internal\"";
        let heading = format!("[upstream.{upstream}]\n{url}\n");
        let comments = self.text.lines().take_while(|line| line.starts_with('#'));
        let length: usize = comments.map(|line| line.len() + 1).sum();
        let (comments, keys) = text.split_at(length);
        format!("{comments}{heading}{keys}")
    }
}
