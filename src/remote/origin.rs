//! Where credentials come from, in the order in which they are looked for. Never what they are.

use super::{
    hub,
    url::{RemoteUrl, Service},
};
use std::{env, path::PathBuf};

/// Where the credentials of a URL come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The variable, the file or the service.
    pub from: String,
    /// What to do if they are not the right ones.
    pub advice: Option<String>,
}

impl Origin {
    fn new(from: impl Into<String>) -> Self {
        Self { from: from.into(), advice: None }
    }

    /// The credentials of a machine in a cloud, which is asked if nothing else is configured.
    fn machine(from: &str, advice: &str) -> Self {
        Self { from: from.into(), advice: Some(advice.into()) }
    }

    /// Where those of `url` come from.
    pub fn of(url: &RemoteUrl) -> Self {
        let has = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        match &url.service {
            Service::S3 { .. } => s3(&has),
            Service::Gcs { .. } => gcs(&has),
            Service::Azure { .. } => azure(&has),
            Service::Hub { .. } => match hub::token_origin() {
                Some(from) => Self::new(from),
                None => Self {
                    from: "none: only public repositories can be read".into(),
                    advice: Some("for others: set HF_TOKEN".into()),
                },
            },
            Service::Web { url } if url.query().is_some() => Self::new("the query of the URL"),
            Service::Web { .. } => Self::new("none: web servers get none"),
        }
    }
}

/// Says which variables are set.
type Has<'a> = &'a dyn Fn(&str) -> bool;

/// A variable, and the file that it names.
fn file(variable: &str) -> String {
    let path = env::var_os(variable).map(PathBuf::from).unwrap_or_default();
    format!("{variable}, the file {}", path.display())
}

fn s3(has: Has<'_>) -> Origin {
    if is_true("AWS_SKIP_SIGNATURE") {
        return Origin::new("none: AWS_SKIP_SIGNATURE");
    }
    if has("AWS_ACCESS_KEY_ID") || has("AWS_SECRET_ACCESS_KEY") {
        let token = if has("AWS_SESSION_TOKEN") { ", AWS_SESSION_TOKEN" } else { "" };
        return Origin::new(format!("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY{token}"));
    }
    if has("AWS_WEB_IDENTITY_TOKEN_FILE") && has("AWS_ROLE_ARN") {
        return Origin::new(file("AWS_WEB_IDENTITY_TOKEN_FILE"));
    }
    if has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return Origin::new("the container's role: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    }
    let token = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    if has("AWS_CONTAINER_CREDENTIALS_FULL_URI") && has(token) {
        return Origin::new(format!("the pod's identity: {}", file(token)));
    }
    Origin::machine(
        "the role of this machine, by its metadata: no variable names others",
        "profiles are not read: eval \"$(aws configure export-credentials --format env)\"; \
         for public buckets: AWS_SKIP_SIGNATURE=true",
    )
}

fn gcs(has: Has<'_>) -> Origin {
    if is_true("GOOGLE_SKIP_SIGNATURE") {
        return Origin::new("none: GOOGLE_SKIP_SIGNATURE");
    }
    for variable in ["GOOGLE_BEARER_TOKEN", "GOOGLE_SERVICE_ACCOUNT_KEY"] {
        if has(variable) {
            return Origin::new(variable);
        }
    }
    let files =
        ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"];
    if let Some(variable) = files.into_iter().find(|variable| has(variable)) {
        return Origin::new(file(variable));
    }
    let known = ".config/gcloud/application_default_credentials.json";
    let login = env::var_os("HOME").map(|home| PathBuf::from(home).join(known));
    if let Some(login) = login.filter(|path| path.exists()) {
        return Origin::new(format!("the file {}", login.display()));
    }
    Origin::machine(
        "the account of this machine, by its metadata: no variable names others",
        "elsewhere: gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS; \
         for public buckets: GOOGLE_SKIP_SIGNATURE=true",
    )
}

fn azure(has: Has<'_>) -> Origin {
    if is_true("AZURE_SKIP_SIGNATURE") {
        return Origin::new("none: AZURE_SKIP_SIGNATURE");
    }
    let any = |names: &[&'static str]| names.iter().copied().find(|name| has(name));
    let client = any(&["AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"]);
    if let Some(variable) = any(&[
        "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_MASTER_KEY",
    ]) {
        return Origin::new(variable);
    }
    if client.is_some() && has("AZURE_FEDERATED_TOKEN_FILE") {
        return Origin::new(file("AZURE_FEDERATED_TOKEN_FILE"));
    }
    let secret = any(&["AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET"]);
    if let (Some(client), Some(secret)) = (client, secret) {
        return Origin::new(format!("{client}, {secret}"));
    }
    if let Some(variable) = any(&["AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN"]) {
        return Origin::new(variable);
    }
    if is_true("AZURE_USE_AZURE_CLI") {
        return Origin::new("the command az: AZURE_USE_AZURE_CLI");
    }
    Origin::machine(
        "the identity of this machine, by its metadata: no variable names others",
        "elsewhere: set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    )
}

fn is_true(variable: &str) -> bool {
    env::var(variable)
        .is_ok_and(|value| matches!(&*value.to_ascii_lowercase(), "true" | "1" | "on" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_looked_for_in_order() {
        let from =
            |origin: fn(Has<'_>) -> Origin, set: &[&str]| origin(&|name| set.contains(&name)).from;
        assert_eq!(
            from(s3, &["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN"]),
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
        );
        let identity = ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"];
        assert!(from(s3, &identity).starts_with("AWS_WEB_IDENTITY_TOKEN_FILE, the file"));
        assert!(from(s3, &identity[..1]).starts_with("the role of this machine"));
        let key = from(gcs, &["GOOGLE_SERVICE_ACCOUNT_KEY"]);
        assert_eq!(key, "GOOGLE_SERVICE_ACCOUNT_KEY");
        let secret = from(azure, &["AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"]);
        assert_eq!(secret, "AZURE_CLIENT_ID, AZURE_CLIENT_SECRET");
        assert!(from(azure, &[]).starts_with("the identity of this machine"));
    }
}
