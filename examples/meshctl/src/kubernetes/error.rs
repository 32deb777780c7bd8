//! What can go wrong between here and an API server.

use std::path::PathBuf;

/// Why the cluster could not be asked. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KubernetesError {
    /// Nothing says where the API server is.
    #[error(
        "no Kubernetes cluster is configured: there is no --kubeconfig, KUBECONFIG or ~/.kube/config, and \
         KUBERNETES_SERVICE_HOST is not set; use -f to ask about files"
    )]
    NoConfiguration,
    /// A file that the configuration names cannot be read.
    #[error("{}: {source}{}", .file.display(), named_by(.field))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The field that names it; empty for the kubeconfig itself.
        field: String,
        /// Why.
        source: std::io::Error,
    },
    /// A field of the configuration cannot be used.
    #[error("{}: field `{field}`: {message}", .file.display())]
    Field {
        /// The file in which the field stands.
        file: PathBuf,
        /// The field, with the names of the entries on the way: `users[alice].token`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A variable of the environment cannot be used.
    #[error("environment variable {name}: {message}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Not a name that Kubernetes gives to anything.
    #[error("{what} {value:?} is not a Kubernetes name: lower-case letters, digits, `-` and `.` only")]
    Name {
        /// What it should name.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// No connection, no handshake or no answer.
    #[error("cannot reach {server}: {message}")]
    Unreachable {
        /// Address of the API server.
        server: String,
        /// Why.
        message: String,
    },
    /// The API server said no.
    #[error("{server} answered {code} to GET {path}: {message}")]
    Refused {
        /// Address of the API server.
        server: String,
        /// The path asked for.
        path: String,
        /// HTTP status.
        code: u16,
        /// Its explanation.
        message: String,
    },
    /// The answer is not what the API promises.
    #[error("{server}: the answer to GET {path} {message}")]
    Answer {
        /// Address of the API server.
        server: String,
        /// The path asked for.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

fn named_by(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(" (named by field `{field}`)") }
}
