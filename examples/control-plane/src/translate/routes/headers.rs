//! Header operations of VirtualServices.

use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use crate::resources::{HeaderOperations, Headers};

/// Operations in Envoy's form.
#[derive(Debug, Default)]
pub(super) struct Operations {
    pub(super) request_add: Vec<core::HeaderValueOption>,
    pub(super) request_remove: Vec<String>,
    pub(super) response_add: Vec<core::HeaderValueOption>,
    pub(super) response_remove: Vec<String>,
    /// A `Host` or `:authority` that is set is a rewrite of the host.
    pub(super) host: Option<String>,
}

impl Operations {
    /// Of a route or of one of its destinations.
    pub(super) fn of(headers: Option<&Headers>) -> Self {
        let mut this = Self::default();
        this.append(headers);
        this
    }

    /// Adds those of a route's only destination after the route's own.
    pub(super) fn append(&mut self, headers: Option<&Headers>) {
        let Some(headers) = headers else { return };
        if let Some(request) = &headers.request {
            let host = request.set.iter().find(|(name, _)| is_host(name)).map(|(_, value)| value.clone());
            self.host = host.or_else(|| self.host.take());
            self.request_add.extend(values(request));
            self.request_remove.extend(removals(request));
        }
        if let Some(response) = &headers.response {
            self.response_add.extend(values(response));
            self.response_remove.extend(removals(response));
        }
    }
}

fn values(operations: &HeaderOperations) -> impl Iterator<Item = core::HeaderValueOption> + '_ {
    let option = |name: &String, value: &String, action: HeaderAppendAction| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.clone(),
            value: value.clone(),
            ..core::HeaderValue::default()
        }),
        append_action: action.into(),
        ..core::HeaderValueOption::default()
    };
    let set = operations
        .set
        .iter()
        .filter(|(name, _)| settable(name))
        .map(move |(name, value)| option(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = operations
        .add
        .iter()
        .filter(|(name, _)| settable(name))
        .map(move |(name, value)| option(name, value, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add)
}

fn removals(operations: &HeaderOperations) -> impl Iterator<Item = String> + '_ {
    operations.remove.iter().filter(|name| settable(name)).cloned()
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

/// Pseudo-headers and `Host` are not plain headers.
fn settable(name: &str) -> bool {
    !name.starts_with(':') && !is_host(name)
}
