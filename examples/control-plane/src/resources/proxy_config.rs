//! `ProxyConfig`: what proxies of a namespace, or of some pods of it, are started with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LabelSelector;
use super::scalar::null_as_default;

/// `networking.istio.io/ProxyConfig`; read by the injector.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyConfig {
    /// Pods that it is for; all of the namespace where absent or empty.
    #[serde(default)]
    pub selector: Option<LabelSelector>,
    /// Number of worker threads.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// Environment of the proxy.
    #[serde(default, deserialize_with = "null_as_default")]
    pub environment_variables: BTreeMap<String, String>,
    /// Which image the proxy runs.
    #[serde(default)]
    pub image: Option<ProxyImage>,
}

/// The image of a [`ProxyConfig`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyImage {
    /// `default`, `debug` or `distroless`.
    #[serde(default)]
    pub image_type: String,
}
