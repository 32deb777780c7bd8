//! The API server's part in injection: asks the webhook that the published configuration selects, applies its patch.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_inject::patch::Patch;
use mesh_inject::webhook::selected_by;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::error::{LabError, Result};
use crate::http::{self, Call};
use crate::objects::Key;

/// Where the injector serves TLS; a cluster's service maps port 443 to it.
const WEBHOOK_PORT: u16 = 15017;
/// Time for one review, as `timeoutSeconds` of a webhook defaults to.
const LIMIT: Duration = Duration::from_secs(10);

/// What admission did to a pod.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    /// The object to run.
    pub(crate) pod: Value,
    /// Number of patch operations; `None` when no webhook was asked.
    pub(crate) operations: Option<usize>,
}

/// Sends `pod` through every webhook that selects it.
pub(crate) async fn admit(
    configurations: &[Value],
    namespace: &Value,
    pod: &Value,
    control_plane: Ipv4Addr,
) -> Result<Admitted> {
    let mut admitted = Admitted { pod: pod.clone(), operations: None };
    for selection in selected_by(configurations, namespace, pod) {
        let entry = configurations
            .iter()
            .filter(|object| {
                object.pointer("/metadata/name").and_then(Value::as_str) == Some(&selection.configuration)
            })
            .flat_map(|object| object.get("webhooks").and_then(Value::as_array).into_iter().flatten())
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some(&selection.webhook));
        let Some(entry) = entry else { continue };
        let patch = review(entry, &admitted.pod, control_plane).await?;
        let applied =
            patch.apply(&admitted.pod).map_err(|error| object_error(pod, "patch", error.to_string()))?;
        admitted.operations = Some(admitted.operations.unwrap_or(0) + patch.len());
        admitted.pod = applied;
    }
    Ok(admitted)
}

async fn review(webhook: &Value, pod: &Value, control_plane: Ipv4Addr) -> Result<Patch> {
    let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or("lab");
    let namespace = pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": namespace,
            "operation": "CREATE",
            "object": pod,
        },
    });
    let service = webhook.pointer("/clientConfig/service").unwrap_or(&Value::Null);
    let path = service.get("path").and_then(Value::as_str).unwrap_or("/");
    let host = format!(
        "{}.{}.svc",
        service.get("name").and_then(Value::as_str).unwrap_or_default(),
        service.get("namespace").and_then(Value::as_str).unwrap_or_default()
    );
    let url = format!("https://{host}{path}");
    let failed = |message: String| LabError::Http { url: url.clone(), message };
    let bundle = webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str).unwrap_or_default();
    let roots = STANDARD.decode(bundle).map_err(|error| failed(format!("caBundle: {error}")))?;
    let call = Call::post(path, review.to_string().into_bytes()).host(&host);
    let connector = TlsConnector::from(Arc::new(client_config(&roots).map_err(failed)?));
    let name = ServerName::try_from(host.clone()).map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let address = SocketAddr::from((control_plane, WEBHOOK_PORT));
        let stream = TcpStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
        let stream = connector.connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
        http::send(stream, call).await
    };
    let answer = timeout(LIMIT, exchange).await.map_err(|_| failed(String::from("no answer in time")))??;
    if answer.status != 200 {
        return Err(failed(format!("status {}: {}", answer.status, answer.text())));
    }
    read_response(&answer.json(&url)?, uid).map_err(failed)
}

/// The patch of an admission response; the error is the webhook's reason.
fn read_response(review: &Value, uid: &str) -> Result<Patch, String> {
    let response = review.get("response").ok_or("the answer has no response")?;
    if response.get("allowed").and_then(Value::as_bool) != Some(true) {
        let message =
            response.pointer("/status/message").and_then(Value::as_str).unwrap_or("no reason given");
        return Err(format!("refused: {message}"));
    }
    if response.get("uid").and_then(Value::as_str) != Some(uid) {
        return Err(String::from("the answer is for another request"));
    }
    let Some(patch) = response.get("patch").and_then(Value::as_str) else {
        return Patch::from_json(&json!([])).map_err(|error| error.to_string());
    };
    let bytes = STANDARD.decode(patch).map_err(|error| format!("patch: {error}"))?;
    let operations: Value = serde_json::from_slice(&bytes).map_err(|error| format!("patch: {error}"))?;
    Patch::from_json(&operations).map_err(|error| format!("patch: {error}"))
}

fn client_config(bundle: &[u8]) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|error| format!("caBundle: {error}"))?;
        roots.add(certificate).map_err(|error| format!("caBundle: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn object_error(pod: &Value, field: &str, message: String) -> LabError {
    let object = Key::of(pod).map_or_else(|| String::from("Pod"), |key| key.to_string());
    LabError::Object { object, field: field.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_a_patch_or_a_reason() {
        let answer = |response: Value| read_response(&json!({ "response": response }), "u1");
        let patch = STANDARD.encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        let allowed =
            answer(json!({ "uid": "u1", "allowed": true, "patchType": "JSONPatch", "patch": patch }));
        assert_eq!(allowed.unwrap().len(), 1);
        assert!(answer(json!({ "uid": "u1", "allowed": true })).unwrap().is_empty());
        let refused = answer(json!({ "uid": "u1", "allowed": false, "status": { "message": "no" } }));
        assert_eq!(refused.unwrap_err(), "refused: no");
        assert!(answer(json!({ "uid": "u2", "allowed": true })).unwrap_err().contains("another request"));
    }
}
