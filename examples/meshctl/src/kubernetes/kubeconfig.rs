//! kubeconfig files, as far as a reader of a few objects needs them.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_inject::offline::parse_documents;
use rustls::pki_types::ServerName;
use serde_json::Value;

use super::credentials::{self, Connection, Pem, Server, Tls, Token};
use super::error::KubernetesError;

/// Ways to authenticate that need another program or another secret; saying so beats an anonymous request.
const UNSUPPORTED_USERS: [&str; 4] = ["exec", "auth-provider", "username", "as"];

/// One or more kubeconfig files. As in kubectl, the first file that says something wins.
pub(super) struct Kubeconfig {
    files: Vec<(PathBuf, Value)>,
}

impl Kubeconfig {
    /// Read files, in the order in which they win.
    ///
    /// # Errors
    /// [`KubernetesError`] when a file cannot be read or is not one YAML document.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, KubernetesError> {
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let wrong = |message: String| KubernetesError::Field {
                file: path.clone(),
                field: String::new(),
                message,
            };
            let bytes = credentials::read(path, "")?;
            let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8".to_owned()))?;
            let mut documents = parse_documents(&text).map_err(|error| wrong(error.to_string()))?;
            if documents.len() > 1 {
                return Err(wrong("holds more than one document".to_owned()));
            }
            files.push((path.clone(), documents.pop().unwrap_or_default()));
        }
        Ok(Self { files })
    }

    /// The connection of a context; of the current one by default.
    ///
    /// # Errors
    /// [`KubernetesError::Field`] or [`KubernetesError::Unreadable`], naming file and field.
    pub(super) fn connection(&self, context: Option<&str>) -> Result<Connection, KubernetesError> {
        let current = || {
            let all = self.files.iter().filter_map(|(_, value)| value.get("current-context")?.as_str());
            all.into_iter().find(|name| !name.is_empty())
        };
        let name = context
            .or_else(current)
            .ok_or_else(|| self.wrong("current-context", "is not set; name one with --context"))?;
        let context = self.entry("contexts", "context", name)?;
        let cluster = self.entry("clusters", "cluster", context.required("cluster")?)?;
        let user = match context.text("user")? {
            Some(user) => Some(self.entry("users", "user", user)?),
            None => None,
        };
        let server =
            Server::parse(cluster.required("server")?).map_err(|message| cluster.wrong("server", message))?;
        if cluster.value.get("insecure-skip-tls-verify") == Some(&Value::Bool(true)) {
            return Err(cluster.wrong(
                "insecure-skip-tls-verify",
                "is not supported: name the server's authority in certificate-authority",
            ));
        }
        if cluster.text("proxy-url")?.is_some() {
            return Err(cluster.wrong("proxy-url", "is not supported"));
        }
        let (token, client) = match &user {
            Some(user) => (user.token()?, user.client()?),
            None => (None, None),
        };
        let tls = if server.https {
            let roots = cluster.pem("certificate-authority")?;
            let roots = roots.ok_or_else(|| cluster.wrong("certificate-authority", "is not set"))?;
            let (field, name) = match cluster.text("tls-server-name")? {
                Some(name) => ("tls-server-name", name.to_owned()),
                None => ("server", server.host.clone()),
            };
            let name = ServerName::try_from(name)
                .map_err(|_| cluster.wrong(field, "is neither a DNS name nor an address"))?;
            Some(Tls::new(name, &roots, client)?)
        } else if token.is_some() || client.is_some() {
            return Err(cluster.wrong("server", "is plain http: credentials are not sent unprotected"));
        } else {
            None
        };
        let namespace = context.text("namespace")?.unwrap_or("default").to_owned();
        Ok(Connection { server, tls, token, namespace })
    }

    /// The named entry of a list: of `contexts`, `clusters` or `users`.
    fn entry(&self, list: &str, kind: &str, name: &str) -> Result<Section<'_>, KubernetesError> {
        for (file, document) in &self.files {
            let entries = document.get(list).and_then(Value::as_array);
            let entry =
                entries.into_iter().flatten().find(|e| e.get("name").and_then(Value::as_str) == Some(name));
            if let Some(entry) = entry {
                let value = entry.get(kind).unwrap_or(&Value::Null);
                return Ok(Section { file, path: format!("{list}[{name}].{kind}"), value });
            }
        }
        Err(self.wrong(list, &format!("there is no entry {name:?}")))
    }

    fn wrong(&self, field: &str, message: &str) -> KubernetesError {
        let file = self.files.first().map(|(file, _)| file.clone()).unwrap_or_default();
        KubernetesError::Field { file, field: field.to_owned(), message: message.to_owned() }
    }
}

/// One entry of a kubeconfig, with where it stands.
struct Section<'a> {
    file: &'a Path,
    path: String,
    value: &'a Value,
}

impl Section<'_> {
    fn wrong(&self, field: &str, message: impl Into<String>) -> KubernetesError {
        KubernetesError::Field {
            file: self.file.to_owned(),
            field: format!("{}.{field}", self.path),
            message: message.into(),
        }
    }

    /// A text; an empty one is like none.
    fn text(&self, field: &str) -> Result<Option<&str>, KubernetesError> {
        match self.value.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            // The value may be a secret, so only its place is told.
            Some(_) => Err(self.wrong(field, "is not a string")),
        }
    }

    fn required(&self, field: &str) -> Result<&str, KubernetesError> {
        self.text(field)?.ok_or_else(|| self.wrong(field, "is not set"))
    }

    /// Bytes of `FIELD-data` (base64), else of the file that `FIELD` names, relative to the kubeconfig.
    fn pem(&self, field: &str) -> Result<Option<Pem>, KubernetesError> {
        let data = format!("{field}-data");
        if let Some(text) = self.text(&data)? {
            let compact: String = text.split_ascii_whitespace().collect();
            let bytes = STANDARD.decode(compact).map_err(|_| self.wrong(&data, "is not base64"))?;
            return Ok(Some(Pem {
                file: self.file.to_owned(),
                field: format!("{}.{data}", self.path),
                bytes,
            }));
        }
        let Some(path) = self.text(field)? else { return Ok(None) };
        let named = format!("{}.{field}", self.path);
        let bytes = credentials::read(&self.relative(path), &named)?;
        Ok(Some(Pem { file: self.file.to_owned(), field: named, bytes }))
    }

    fn relative(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or_else(|| Path::new("")).join(path)
    }

    /// The user's token; a file wins over one written down, as in Kubernetes' own client.
    fn token(&self) -> Result<Option<Token>, KubernetesError> {
        for field in UNSUPPORTED_USERS {
            if self.value.get(field).is_some_and(|value| !value.is_null()) {
                return Err(self.wrong(
                    field,
                    "is not supported; use token, tokenFile or client-certificate with client-key",
                ));
            }
        }
        let (field, text) = match self.text("tokenFile")? {
            Some(path) => {
                let bytes = credentials::read(&self.relative(path), &format!("{}.tokenFile", self.path))?;
                ("tokenFile", String::from_utf8_lossy(&bytes).into_owned())
            }
            None => match self.text("token")? {
                Some(text) => ("token", text.to_owned()),
                None => return Ok(None),
            },
        };
        let token = Token::new(&text).ok_or_else(|| self.wrong(field, "is empty"))?;
        if token.header().is_none() {
            return Err(self.wrong(field, "holds characters that no header can carry"));
        }
        Ok(Some(token))
    }

    fn client(&self) -> Result<Option<(Pem, Pem)>, KubernetesError> {
        match (self.pem("client-certificate")?, self.pem("client-key")?) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (Some(_), None) => Err(self.wrong("client-key", "is not set, but client-certificate is")),
            (None, Some(_)) => Err(self.wrong("client-certificate", "is not set, but client-key is")),
        }
    }
}

#[cfg(test)]
mod tests;
