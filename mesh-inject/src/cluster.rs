//! What the injector may know about the cluster around a pod.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::pod;
use crate::settings::NativeSidecars;

/// Facts about the cluster, as plain objects. Everything is optional: an empty cluster is a fine one.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Namespace objects by name: OpenShift's ranges, the Pod Security level.
    pub namespaces: BTreeMap<String, Value>,
    /// `ProxyConfig` resources (`networking.istio.io`).
    pub proxy_configs: Vec<Value>,
    /// Kubelet version by node name (`v1.33.0`).
    pub kubelets: BTreeMap<String, String>,
}

impl Cluster {
    /// Is the native layout the default for this pod?
    ///
    /// With [`NativeSidecars::Auto`] every kubelet that may run the pod must be 1.33 or later: that of the node it is
    /// bound to, if known, else all. With no known node the answer is yes.
    #[must_use]
    pub fn native_sidecars(&self, mode: NativeSidecars, pod: &Value) -> bool {
        match mode {
            NativeSidecars::Always => true,
            NativeSidecars::Never => false,
            NativeSidecars::Auto => {
                let node = pod.pointer("/spec/nodeName").and_then(Value::as_str);
                match node.and_then(|node| self.kubelets.get(node)) {
                    Some(version) => recent(version),
                    None => self.kubelets.values().all(|version| recent(version)),
                }
            }
        }
    }

    /// Put a Namespace object in.
    pub fn add_namespace(&mut self, namespace: Value) {
        if let Some(name) = namespace.pointer("/metadata/name").and_then(Value::as_str) {
            self.namespaces.insert(name.to_owned(), namespace);
        }
    }

    /// Take the kubelet's version from a Node object; one that says nothing counts as old.
    pub fn add_node(&mut self, node: &Value) {
        let text =
            |pointer: &str| node.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        self.kubelets.insert(text("/metadata/name"), text("/status/nodeInfo/kubeletVersion"));
    }

    pub(crate) fn namespace_annotation(&self, namespace: &str, key: &str) -> Option<&str> {
        pod::annotation(self.namespaces.get(namespace)?, key)
    }

    /// `ProxyConfig` resources of a namespace, oldest first: those without selector, then those whose selector
    /// matches the pod.
    pub(crate) fn proxy_configs_of<'a>(
        &'a self,
        namespace: &str,
        pod_in: &Value,
    ) -> (Option<&'a Value>, Option<&'a Value>) {
        let mut of_namespace: Vec<&Value> = self
            .proxy_configs
            .iter()
            .filter(|resource| {
                resource.pointer("/metadata/namespace").and_then(Value::as_str) == Some(namespace)
            })
            .collect();
        // "~" sorts after every time: what has none is younger, and stands in the order in which it was given.
        let created = |resource: &Value| {
            let time = resource.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
            time.unwrap_or("~").to_owned()
        };
        of_namespace.sort_by_key(|resource| created(resource));
        let selector =
            |resource: &'a Value| resource.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
        let plain = of_namespace
            .iter()
            .copied()
            .find(|resource| selector(resource).is_none_or(serde_json::Map::is_empty));
        let selected = of_namespace.iter().copied().find(|resource| {
            selector(resource).is_some_and(|wanted| {
                !wanted.is_empty()
                    && wanted.iter().all(|(key, value)| pod::label(pod_in, key) == value.as_str())
            })
        });
        (plain, selected)
    }

    /// User and group of the proxy on OpenShift: the last of the namespace's ranges.
    pub(crate) fn openshift_ids(&self, namespace: &str) -> (Option<i64>, Option<i64>) {
        let users = self.namespace_annotation(namespace, "openshift.io/sa.scc.uid-range");
        let groups =
            self.namespace_annotation(namespace, "openshift.io/sa.scc.supplemental-groups").or(users);
        let last =
            |range: Option<&str>| range.and_then(|range| range.split(',').next()).and_then(end_of_range);
        (last(users), last(groups))
    }
}

/// End of `START/SIZE` or `START-END`.
fn end_of_range(range: &str) -> Option<i64> {
    let number = |text: &str| text.trim().parse::<i64>().ok().filter(|number| *number >= 0);
    if let Some((start, size)) = range.split_once('/') {
        let end = number(start)?.checked_add(number(size)?)?.checked_sub(1)?;
        return (number(size)? > 0).then_some(end);
    }
    let (start, end) = range.split_once('-')?;
    (number(start)? <= number(end)?).then_some(number(end)?)
}

/// Is this kubelet 1.33 or later?
fn recent(version: &str) -> bool {
    let version = version.strip_prefix('v').unwrap_or(version);
    let mut parts = version.split('.');
    let mut number = || parts.next().map(|part| part.trim_end_matches(|c: char| !c.is_ascii_digit()));
    match (number().and_then(|n| n.parse::<u64>().ok()), number().and_then(|n| n.parse::<u64>().ok())) {
        (Some(1), Some(minor)) => minor >= 33,
        (Some(major), Some(_)) => major > 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn native_by_kubelet() {
        let pod = |node: &str| json!({"spec":{"nodeName":node}});
        let mut cluster = Cluster::default();
        assert!(cluster.native_sidecars(NativeSidecars::Auto, &pod("")));
        cluster.kubelets.insert("new".into(), "v1.34.0".into());
        cluster.kubelets.insert("old".into(), "v1.32.9+k3s1".into());
        assert!(!cluster.native_sidecars(NativeSidecars::Auto, &pod("")));
        assert!(cluster.native_sidecars(NativeSidecars::Auto, &pod("new")));
        assert!(!cluster.native_sidecars(NativeSidecars::Auto, &pod("old")));
        assert!(!cluster.native_sidecars(NativeSidecars::Auto, &pod("unknown")));
        assert!(cluster.native_sidecars(NativeSidecars::Always, &pod("old")));
        assert!(!cluster.native_sidecars(NativeSidecars::Never, &pod("new")));
        assert!(recent("1.33") && recent("v1.33+") && !recent("nightly") && !recent("v1"));
    }

    #[test]
    fn ranges() {
        assert_eq!(end_of_range("1000620000/10000"), Some(1_000_629_999));
        assert_eq!(end_of_range("1-5"), Some(5));
        assert_eq!(end_of_range("5-1"), None);
        assert_eq!(end_of_range("1/0"), None);
        assert_eq!(end_of_range("x/1"), None);
    }
}
