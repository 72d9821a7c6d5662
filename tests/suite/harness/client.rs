//! A client like that of a service: one connection pool, one token.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Method, RequestBuilder, Response};
use serde_json::Value;

use super::Gateway;

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    base: String,
    pub(crate) token: Option<String>,
}

impl Client {
    pub(crate) fn new(gateway: &Gateway) -> Self {
        Self::built(gateway, reqwest::Client::builder())
    }

    /// The same over HTTP/1.1 only.
    pub(crate) fn http1(gateway: &Gateway) -> Self {
        Self::built(gateway, reqwest::Client::builder().http1_only())
    }

    pub(crate) fn built(gateway: &Gateway, builder: reqwest::ClientBuilder) -> Self {
        Self::of(gateway.folder.path(), &gateway.url(""), builder)
    }

    /// A client of the gate at `base` whose certificates are in `folder`.
    pub(crate) fn of(folder: &Path, base: &str, builder: reqwest::ClientBuilder) -> Self {
        let pem = std::fs::read(folder.join("certs/ca.pem")).unwrap();
        let http = builder
            .tls_certs_only([Certificate::from_pem(&pem).unwrap()])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(60))
            .no_proxy()
            .build()
            .unwrap();
        Self {
            http,
            base: base.to_owned(),
            token: None,
        }
    }

    pub(crate) async fn login(&self, name: &str, password: &str) -> Response {
        self.login_with(name, password, "").await
    }

    pub(crate) async fn login_with(
        &self,
        name: &str,
        password: &str,
        body: &'static str,
    ) -> Response {
        let request = self.http.post(format!("{}/v1/users/login", self.base));
        request
            .basic_auth(name, Some(password))
            .body(body)
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn logged_in(mut self, name: &str, password: &str) -> Self {
        let response = self.login(name, password).await;
        assert_eq!(response.status(), 200, "login of {name}");
        let response: Value = response.json().await.unwrap();
        self.token = Some(response["users"][0]["token"].as_str().unwrap().to_owned());
        self
    }

    pub(crate) fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        let request = self.request(Method::POST, path);
        request
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap()
    }
}

/// Status and `errors[0].code` of a response; the code is 0 if there is none.
pub(crate) async fn verdict(response: Response) -> (u16, u64) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap_or_default();
    (status, body["errors"][0]["code"].as_u64().unwrap_or(0))
}
