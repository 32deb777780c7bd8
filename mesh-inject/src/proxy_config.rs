//! The effective `ProxyConfig` of a pod and the text in which the sidecar receives it.

mod render;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::yaml;

pub(crate) use render::canonical;

/// A `ProxyConfig`: top-level fields in their JSON names. Setting a field replaces it whole, except `proxyMetadata`,
/// whose entries merge.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProxyConfig {
    fields: Map<String, Value>,
}

impl ProxyConfig {
    /// The built-in defaults.
    pub(crate) fn built_in() -> Self {
        let Value::Object(fields) = json!({
            "configPath": "./etc/istio/proxy",
            "binaryPath": "/usr/local/bin/envoy",
            "serviceCluster": "istio-proxy",
            "drainDuration": "45s",
            "discoveryAddress": "istiod.istio-system.svc:15012",
            "proxyAdminPort": 15000,
            "controlPlaneAuthPolicy": "MUTUAL_TLS",
            "statNameLength": 189,
            "statusPort": 15020,
            "terminationDrainDuration": "5s",
        }) else {
            return Self { fields: Map::new() };
        };
        Self { fields }
    }

    /// Lay the fields of a JSON object over this one. Names in `snake_case` are understood too.
    ///
    /// Returns what was ignored (unknown fields).
    pub(crate) fn apply(&mut self, over: &Map<String, Value>) -> Vec<String> {
        let mut unknown = Vec::new();
        for (name, value) in over {
            let name = render::camel_case(name);
            if !render::is_field(&name) {
                unknown.push(name);
                continue;
            }
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("proxyMetadata", Value::Object(entries)) => {
                    let known = self.fields.entry(name).or_insert_with(|| json!({}));
                    for (key, value) in entries {
                        crate::pod::as_map(known).insert(key.clone(), value.clone());
                    }
                }
                ("interceptionMode", value) => {
                    self.fields.insert(name, render::enum_name(value, &["REDIRECT", "TPROXY", "NONE"]));
                }
                ("controlPlaneAuthPolicy", value) => {
                    self.fields.insert(name, render::enum_name(value, &["NONE", "MUTUAL_TLS"]));
                }
                ("tracingServiceName", value) => {
                    self.fields.remove("serviceCluster");
                    self.fields.insert(name, value.clone());
                }
                ("serviceCluster", value) => {
                    self.fields.remove("tracingServiceName");
                    self.fields.insert(name, value.clone());
                }
                (_, value) => {
                    let duration = render::canonical_duration(&name, value).map(Value::String);
                    self.fields.insert(name, duration.unwrap_or_else(|| value.clone()));
                }
            }
        }
        unknown
    }

    /// Lay the YAML of a `proxy.istio.io/config` annotation over this one.
    ///
    /// # Errors
    /// A message that names the field.
    pub(crate) fn apply_yaml(&mut self, text: &str) -> Result<Vec<String>, String> {
        match yaml::parse(text)? {
            Value::Null => Ok(Vec::new()),
            Value::Object(fields) => {
                let unknown = self.apply(&fields);
                self.problem().map_or(Ok(unknown), Err)
            }
            other => Err(format!("expected a map, found {}", crate::json::type_name(&other))),
        }
    }

    /// Lay a `ProxyConfig` custom resource over this one: it sets concurrency, environment variables and image only.
    pub(crate) fn apply_resource(&mut self, resource: &Value) {
        let Some(spec) = resource.get("spec") else { return };
        let mut fields = Map::new();
        for (from, to) in
            [("concurrency", "concurrency"), ("environmentVariables", "proxyMetadata"), ("image", "image")]
        {
            if let Some(value) = spec.get(from) {
                fields.insert(to.to_owned(), value.clone());
            }
        }
        self.apply(&fields);
    }

    /// What makes this configuration unusable, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        render::problem(&self.fields)
    }

    /// `proxyMetadata`, sorted by key.
    pub(crate) fn metadata(&self) -> BTreeMap<&str, &str> {
        let entries = self.fields.get("proxyMetadata").and_then(Value::as_object);
        entries
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect()
    }

    /// `interceptionMode`; `REDIRECT` when not set.
    pub(crate) fn interception_mode(&self) -> &str {
        self.fields.get("interceptionMode").and_then(Value::as_str).unwrap_or("REDIRECT")
    }

    /// `statusPort`.
    pub(crate) fn status_port(&self) -> i64 {
        self.fields.get("statusPort").and_then(Value::as_i64).unwrap_or_default()
    }

    /// `holdApplicationUntilProxyStarts`, if set.
    pub(crate) fn hold(&self) -> Option<bool> {
        self.fields.get("holdApplicationUntilProxyStarts").and_then(Value::as_bool)
    }

    /// `image.imageType`, if set.
    pub(crate) fn image_type(&self) -> Option<&str> {
        self.fields.get("image")?.get("imageType")?.as_str().filter(|text| !text.is_empty())
    }

    /// `tracing.tlsSettings.caCertificates`, if there are TLS settings for the tracer.
    pub(crate) fn tracing_ca(&self) -> Option<&str> {
        let tls = self.fields.get("tracing")?.get("tlsSettings")?;
        tls.is_object().then(|| tls.get("caCertificates").and_then(Value::as_str).unwrap_or_default())
    }

    /// The text of `PROXY_CONFIG`: compact JSON in the protocol's field order, without what equals the built-in
    /// defaults, and a newline.
    pub(crate) fn render(&self, built_in: &Self) -> String {
        render::text(&self.fields, &built_in.fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: Value) -> ProxyConfig {
        let mut config = ProxyConfig::built_in();
        assert_eq!(config.apply(value.as_object().unwrap()), Vec::<String>::new());
        config
    }

    fn text(config: &ProxyConfig) -> String {
        config.render(&ProxyConfig::built_in())
    }

    #[test]
    fn only_differences_are_rendered_in_protocol_order() {
        assert_eq!(text(&ProxyConfig::built_in()), "{}\n");
        assert_eq!(text(&with(json!({"statusPort":15020,"proxyMetadata":{}}))), "{}\n");
        let config = with(json!({
            "proxyMetadata": {"B":"2","A":"1"}, "concurrency": 2, "drain_duration": "7s", "interceptionMode": 1,
            "tracing": {"sampling": 10.0, "zipkin": {"address": "z:1"}}, "holdApplicationUntilProxyStarts": false,
        }));
        assert_eq!(
            text(&config),
            "{\"drainDuration\":\"7s\",\"concurrency\":2,\"interceptionMode\":\"TPROXY\",\
             \"tracing\":{\"zipkin\":{\"address\":\"z:1\"},\"sampling\":10},\"proxyMetadata\":{\"A\":\"1\",\"B\":\"2\"},\
             \"holdApplicationUntilProxyStarts\":false}\n"
        );
        assert_eq!(text(&with(json!({"tracing":{}}))), "{\"tracing\":{}}\n");
        assert_eq!(text(&with(json!({"drainDuration":"045.0s"}))), "{}\n");
        assert_eq!(text(&with(json!({"drainDuration":"1.5s"}))), "{\"drainDuration\":\"1.500s\"}\n");
    }

    #[test]
    fn metadata_merges_other_fields_replace() {
        let mut config = with(json!({"proxyMetadata":{"A":"1"},"tracing":{"sampling":1.0}}));
        config.apply_yaml("proxyMetadata: {B: '2'}\ntracing: {zipkin: {address: x}}").unwrap();
        assert_eq!(config.metadata(), BTreeMap::from([("A", "1"), ("B", "2")]));
        assert!(text(&config).contains("\"tracing\":{\"zipkin\":{\"address\":\"x\"}}"));
    }

    #[test]
    fn bad_values_name_the_field() {
        let problem = |yaml: &str| ProxyConfig::built_in().apply_yaml(yaml).unwrap_err();
        assert!(
            problem("proxyAdminPort: 70000").contains("proxyAdminPort"),
            "{}",
            problem("proxyAdminPort: 70000")
        );
        assert!(problem("interceptionMode: SIDEWAYS").contains("interceptionMode"));
        assert!(problem("drainDuration: soon").contains("drainDuration"));
        assert!(problem("discoveryAddress: nowhere").contains("discoveryAddress"));
        assert!(problem("proxyMetadata: {A: 1}").contains("proxyMetadata"));
        assert!(problem("[1]").contains("expected a map"));
        assert!(ProxyConfig::built_in().apply_yaml("{").is_err());
        assert_eq!(ProxyConfig::built_in().apply_yaml("bogus: 1").unwrap(), ["bogus"]);
    }
}
