use serde_json::json;

use super::*;

fn pem() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["api.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn config(cluster: &Value, user: &Value) -> Value {
    json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "prod", "user": "alice", "namespace": "shop"}}],
        "clusters": [{"name": "prod", "cluster": cluster}],
        "users": [{"name": "alice", "user": user}],
    })
}

/// Reads one kubeconfig in a folder with `ca.pem`, `cert.pem`, `key.pem` and `token` beside it.
fn connect(document: &Value) -> Result<Connection, String> {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = pem();
    let path = folder.path().join("config");
    for (name, text) in [
        ("ca.pem", certificate.as_str()),
        ("cert.pem", &certificate),
        ("key.pem", &key),
        ("token", "from-file\n"),
        ("empty", "\n"),
        ("config", &document.to_string()),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let connection = Kubeconfig::read(&[path]).and_then(|config| config.connection(None));
    connection.map_err(|error| error.to_string())
}

#[test]
fn tokens_certificates_and_files_beside_the_kubeconfig() {
    let cluster = json!({"server": "https://api.example:6443", "certificate-authority": "ca.pem"});
    let user = json!({"token": "written", "tokenFile": "token"});
    let connection = connect(&config(&cluster, &user)).ok().unwrap();
    assert_eq!(connection.server.to_string(), "https://api.example:6443");
    assert_eq!(connection.namespace, "shop");
    assert_eq!(connection.token.unwrap().header().unwrap(), "Bearer from-file");
    let user = json!({"client-certificate": "cert.pem", "client-key": "key.pem"});
    let connection = connect(&config(&cluster, &user)).ok().unwrap();
    assert!(
        connection.token.is_none() && connection.tls.unwrap().config.client_auth_cert_resolver.has_certs()
    );
    let cluster = json!({
        "server": "https://10.0.0.1", "tls-server-name": "api.example",
        "certificate-authority-data": STANDARD.encode(pem().0),
    });
    let connection = connect(&config(&cluster, &json!({"token": "t"}))).ok().unwrap();
    assert_eq!(connection.tls.unwrap().name, ServerName::try_from("api.example").unwrap());
    let connection = connect(&config(&json!({"server": "http://127.0.0.1:8001"}), &json!({}))).ok().unwrap();
    assert!(connection.tls.is_none() && connection.token.is_none());
}

#[test]
fn what_cannot_be_used_is_named() {
    let good = json!({"server": "https://api.example", "certificate-authority": "ca.pem"});
    let with = |base: &Value, field: &str, value: Value| {
        let mut changed = base.clone();
        changed[field] = value;
        changed
    };
    let none = json!({});
    for (cluster, user, field, why) in [
        (json!({}), none.clone(), "clusters[prod].cluster.server", "is not set"),
        (json!({"server": 7}), none.clone(), "clusters[prod].cluster.server", "is not a string"),
        (
            with(&good, "server", json!("api")),
            none.clone(),
            "clusters[prod].cluster.server",
            "must begin with",
        ),
        (
            with(&good, "server", json!("https://a_b!")),
            none.clone(),
            "clusters[prod].cluster.server",
            "neither",
        ),
        (
            with(&good, "tls-server-name", json!("a b")),
            none.clone(),
            "clusters[prod].cluster.tls-server-name",
            "neither",
        ),
        (
            with(&good, "certificate-authority", json!("")),
            none.clone(),
            "clusters[prod].cluster.certificate-authority",
            "is not set",
        ),
        (
            with(&good, "certificate-authority", json!("gone")),
            none.clone(),
            "clusters[prod].cluster.certificate-authority",
            "gone",
        ),
        (
            with(&good, "certificate-authority", json!("token")),
            none.clone(),
            "clusters[prod].cluster.certificate-authority",
            "holds no certificate",
        ),
        (
            with(&good, "certificate-authority-data", json!("%")),
            none.clone(),
            "clusters[prod].cluster.certificate-authority-data",
            "is not base64",
        ),
        (
            with(&good, "insecure-skip-tls-verify", json!(true)),
            none.clone(),
            "clusters[prod].cluster.insecure-skip-tls-verify",
            "is not supported",
        ),
        (
            with(&good, "proxy-url", json!("http://p")),
            none.clone(),
            "clusters[prod].cluster.proxy-url",
            "is not supported",
        ),
        (good.clone(), json!({"exec": {"command": "login"}}), "users[alice].user.exec", "is not supported"),
        (
            good.clone(),
            json!({"username": "a", "password": "hidden"}),
            "users[alice].user.username",
            "is not supported",
        ),
        (good.clone(), json!({"token": 12_345}), "users[alice].user.token", "is not a string"),
        (good.clone(), json!({"token": "hid\u{1}den"}), "users[alice].user.token", "no header can carry"),
        (good.clone(), json!({"tokenFile": "empty"}), "users[alice].user.tokenFile", "is empty"),
        (good.clone(), json!({"tokenFile": "gone"}), "users[alice].user.tokenFile", "gone"),
        (
            good.clone(),
            json!({"client-key": "key.pem"}),
            "users[alice].user.client-certificate",
            "is not set",
        ),
        (
            good.clone(),
            json!({"client-certificate": "cert.pem"}),
            "users[alice].user.client-key",
            "is not set",
        ),
        (
            good.clone(),
            json!({"client-certificate": "cert.pem", "client-key": "token"}),
            "users[alice].user.client-key",
            "no private key",
        ),
        (
            json!({"server": "http://api.example"}),
            json!({"token": "hidden"}),
            "clusters[prod].cluster.server",
            "plain http",
        ),
    ] {
        let error = connect(&config(&cluster, &user)).err().unwrap_or_else(|| panic!("{field}: accepted"));
        assert!(error.contains(&format!("field `{field}`")), "{field} is not named: {error}");
        assert!(error.contains(why) && error.contains('/'), "{error}");
        assert!(!error.contains("hid") && !error.contains("12345"), "a secret is shown: {error}");
    }
    let mut document = config(&good, &none);
    for (field, value, why) in [
        ("clusters", json!([]), "field `clusters`: there is no entry \"prod\""),
        ("contexts", json!(7), "field `contexts`: there is no entry \"c\""),
        ("current-context", json!(""), "field `current-context`: is not set"),
    ] {
        document[field] = value;
        let error = connect(&document).err().unwrap();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_first_file_that_says_something_wins() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a"), folder.path().join("b"));
    std::fs::write(&first, "clusters: [{name: prod, cluster: {server: 'http://first'}}]").unwrap();
    let document = config(&json!({"server": "http://second"}), &json!({}));
    std::fs::write(&second, document.to_string()).unwrap();
    let connection = Kubeconfig::read(&[first, second]).unwrap().connection(Some("c")).ok().unwrap();
    assert_eq!((connection.server.host.as_str(), connection.server.port), ("first", 80));
}

#[test]
fn files_that_are_no_kubeconfig() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let error = |paths: &[PathBuf]| Kubeconfig::read(paths).err().unwrap().to_string();
    assert!(error(std::slice::from_ref(&path)).contains("config"));
    for (bytes, why) in
        [(&b"a: ["[..], "invalid document"), (b"\xff", "not UTF-8"), (b"a: 1\n---\nb: 2\n", "more than one")]
    {
        std::fs::write(&path, bytes).unwrap();
        let error = error(std::slice::from_ref(&path));
        assert!(error.contains(why), "{error}");
    }
}
