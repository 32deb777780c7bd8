//! The `openssl` command: verifies our chains, prints our certificates, and speaks TLS with us as client and server.

use std::process::{Output, Stdio};

use libtest_mimic::Trial;
use mesh_identity::{
    Authorizer, Credential,
    ca::{CertificateRequest, KeyKind, SigningRequest},
    client_config, server_config,
    tls::{ConnectionFacts, peer_identity},
    x509::{PrivateKey, private_key_from_pem},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{CART, Files, Outcome, WEB, id, identity, is_installed, new_ca, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let present = is_installed("openssl");
    vec![
        trial("openssl::verifies_our_chain", present, verifies_our_chain),
        trial("openssl::refuses_a_foreign_chain", present, refuses_a_foreign_chain),
        trial("openssl::reads_the_extensions_as_meant", present, reads_the_extensions_as_meant),
        trial("openssl::makes_requests_that_we_sign", present, makes_requests_that_we_sign),
        trial("openssl::keys_in_all_forms", present, keys_in_all_forms),
        trial("openssl::connects_as_a_client", present, connects_as_a_client),
        trial("openssl::is_refused_without_or_with_a_wrong_certificate", present, is_refused),
        trial("openssl::serves_us", present, serves_us),
        trial("openssl::is_refused_as_a_server_we_did_not_name", present, is_refused_as_a_server),
    ]
}

async fn openssl(arguments: &[&str]) -> std::io::Result<Output> {
    Command::new("openssl").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn verifies_our_chain() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    files.add("web", &ca.issue_svid(&id(WEB), None)?)?;
    let (root, leaf) = (files.path("root.pem"), files.path("web.pem"));
    for purpose in ["sslclient", "sslserver"] {
        let arguments = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile"];
        let arguments: Vec<_> = arguments
            .into_iter()
            .chain([root.to_str().ok_or("path")?, leaf.to_str().ok_or("path")?])
            .collect();
        let output = openssl(&arguments).await?;
        assert!(output.status.success(), "{purpose}: {}", text(&output));
    }
    Ok(())
}

async fn refuses_a_foreign_chain() -> Outcome {
    let files = Files::new(&new_ca())?;
    files.add("web", &new_ca().issue_svid(&id(WEB), None)?)?;
    let (root, leaf) = (files.path("root.pem"), files.path("web.pem"));
    let output =
        openssl(&["verify", "-CAfile", root.to_str().ok_or("path")?, leaf.to_str().ok_or("path")?]).await?;
    assert!(!output.status.success(), "{}", text(&output));
    Ok(())
}

async fn reads_the_extensions_as_meant() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    files.add("web", &ca.issue_svid(&id(WEB), None)?)?;
    let leaf = files.path("web.pem");
    let output = openssl(&["x509", "-noout", "-text", "-in", leaf.to_str().ok_or("path")?]).await?;
    let shown = text(&output);
    for expected in [
        "X509v3 Subject Alternative Name: critical",
        &format!("URI:{WEB}"),
        "X509v3 Basic Constraints: critical",
        "CA:FALSE",
        "X509v3 Key Usage: critical",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Authority Key Identifier",
        "X509v3 Subject Key Identifier",
    ] {
        assert!(shown.contains(expected), "{expected} is missing in {shown}");
    }
    Ok(())
}

async fn makes_requests_that_we_sign() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    let key = files.path("key.pem");
    let key = key.to_str().ok_or("path")?;
    let kinds: [(&[&str], Option<KeyKind>); 5] = [
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], Some(KeyKind::Rsa)),
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], None),
        (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], Some(KeyKind::EcP256)),
        (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"], None),
        (&["-algorithm", "ED25519"], Some(KeyKind::Ed25519)),
    ];
    for (arguments, kind) in kinds {
        let arguments: Vec<_> = ["genpkey", "-out", key].iter().chain(arguments).copied().collect();
        let made = openssl(&arguments).await?;
        assert!(made.status.success(), "{}", text(&made));
        let request = openssl(&["req", "-new", "-key", key, "-subj", "/O=somebody/CN=admin"]).await?;
        let csr_pem = String::from_utf8(request.stdout)?;
        let signed = ca.sign(&SigningRequest { csr_pem: &csr_pem, id: &id(WEB), lifetime: None });
        match kind {
            Some(kind) => {
                assert_eq!(CertificateRequest::from_pem(&csr_pem)?.key_kind(), Some(kind));
                let leaf = files.path("leaf.pem");
                std::fs::write(&leaf, &signed?.to_pem_list()[0])?;
                let root = files.path("root.pem");
                let (root, leaf) = (root.to_str().ok_or("path")?, leaf.to_str().ok_or("path")?);
                let verified = openssl(&["verify", "-CAfile", root, leaf]).await?;
                assert!(verified.status.success(), "{kind}: {}", text(&verified));
            }
            None => assert_eq!(signed.err().map(|error| error.reason()), Some("key"), "{arguments:?}"),
        }
    }
    Ok(())
}

/// PKCS#8, SEC1 and PKCS#1, as OpenSSL writes them; all can be used and written as PKCS#8.
async fn keys_in_all_forms() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    let key = files.path("key.pem");
    let key = key.to_str().ok_or("path")?;
    let forms: [(&str, &[&str]); 4] = [
        ("EC PRIVATE KEY", &["ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", key]),
        ("EC PRIVATE KEY", &["ecparam", "-genkey", "-noout", "-name", "secp384r1", "-out", key]),
        ("RSA PRIVATE KEY", &["genrsa", "-traditional", "-out", key, "2048"]),
        ("PRIVATE KEY", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key]),
    ];
    for (label, arguments) in forms {
        let made = openssl(arguments).await?;
        assert!(made.status.success(), "{}", text(&made));
        let pem = std::fs::read_to_string(key)?;
        assert!(pem.contains(&format!("BEGIN {label}")), "{pem}");
        let request = openssl(&["req", "-new", "-key", key, "-subj", "/O=somebody"]).await?;
        let csr_pem = String::from_utf8(request.stdout)?;
        let issued = ca.sign(&SigningRequest { csr_pem: &csr_pem, id: &id(WEB), lifetime: None })?;
        let key = private_key_from_pem(pem.as_bytes())?;
        let pkcs8 = PrivateKey::from_pkcs8(key.to_pkcs8()?.to_vec());
        assert_eq!(Credential::svid(issued.chain.clone(), key)?.id(), Some(&id(WEB)));
        assert_eq!(Credential::svid(issued.chain, pkcs8)?.id(), Some(&id(WEB)), "{label}");
    }
    Ok(())
}

/// Our server for one connection: says who is calling.
async fn serve_once(
    config: std::sync::Arc<rustls::ServerConfig>,
) -> std::io::Result<(String, tokio::task::JoinHandle<Option<String>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.ok()?;
        let mut stream = TlsAcceptor::from(config).accept(tcp).await.ok()?;
        let facts = ConnectionFacts::of(stream.get_ref().1);
        let peer = facts.peer?.id.to_string();
        stream.write_all(format!("hello {peer}\n").as_bytes()).await.ok()?;
        stream.shutdown().await.ok()?;
        Some(peer)
    });
    Ok((address, serving))
}

async fn connects_as_a_client() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    files.add("web", &ca.issue_svid(&id(WEB), None)?)?;
    let accepts = Authorizer::trust_domain(ca.trust_domain().clone());
    let (address, serving) = serve_once(server_config(&identity(&ca, CART), accepts)?).await?;
    let (root, cert, key) = (files.path("root.pem"), files.path("web.pem"), files.path("web.key"));
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-ign_eof", "-verify_return_error", "-CAfile"])
        .arg(root)
        .arg("-cert")
        .arg(cert)
        .arg("-key")
        .arg(key)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let shown = text(&output);
    assert!(shown.contains(&format!("hello {WEB}")), "{shown}");
    assert!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
    assert_eq!(serving.await?.as_deref(), Some(WEB));
    Ok(())
}

async fn is_refused() -> Outcome {
    let (ca, stranger) = (new_ca(), new_ca());
    let files = Files::new(&ca)?;
    files.add("web", &stranger.issue_svid(&id(WEB), None)?)?;
    files.add("cart", &ca.issue_svid(&id(CART), None)?)?;
    for name in [None, Some("web"), Some("cart")] {
        // The third has a good certificate of an identity that this server does not want.
        let config = server_config(&identity(&ca, CART), Authorizer::exact(id(WEB)))?;
        let (address, serving) = serve_once(config).await?;
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address, "-ign_eof"]);
        if let Some(name) = name {
            command.arg("-cert").arg(files.path(&format!("{name}.pem")));
            command.arg("-key").arg(files.path(&format!("{name}.key")));
        }
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        assert!(!text(&output).contains("hello"), "{name:?}: {}", text(&output));
        assert_eq!(serving.await?, None, "{name:?}");
    }
    Ok(())
}

/// `openssl s_server` that demands a client certificate; returns the process and its port.
async fn s_server(files: &Files) -> Result<(tokio::process::Child, String), Box<dyn std::error::Error>> {
    let mut server = Command::new("openssl")
        .args([
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-Verify",
            "2",
            "-verify_return_error",
            "-rev",
            "-CAfile",
        ])
        .arg(files.path("root.pem"))
        .arg("-cert")
        .arg(files.path("cart.pem"))
        .arg("-key")
        .arg(files.path("cart.key"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().ok_or("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            let address = address.to_owned();
            // The rest of the output must be read, or the server stops when the pipe is full.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok((server, address));
        }
    }
    Err("s_server ended".into())
}

async fn serves_us() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    files.add("cart", &ca.issue_svid(&id(CART), None)?)?;
    let (_server, address) = s_server(&files).await?;
    let config = client_config(&identity(&ca, WEB), Authorizer::exact(id(CART)))?;
    let tcp = TcpStream::connect(&address).await?;
    let mut stream = TlsConnector::from(config).connect(ServerName::try_from("cart.shop")?, tcp).await?;
    stream.write_all(b"abc\n").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"cba\n");
    assert_eq!(peer_identity(stream.get_ref().1).ok_or("no peer")?.id, id(CART));
    Ok(())
}

async fn is_refused_as_a_server() -> Outcome {
    let ca = new_ca();
    let files = Files::new(&ca)?;
    files.add("cart", &ca.issue_svid(&id(CART), None)?)?;
    let (_server, address) = s_server(&files).await?;
    let config = client_config(&identity(&ca, WEB), Authorizer::exact(id(WEB)))?;
    let tcp = TcpStream::connect(&address).await?;
    let refused = TlsConnector::from(config).connect(ServerName::try_from("cart.shop")?, tcp).await;
    assert!(refused.err().ok_or("accepted")?.to_string().contains("Denied"));
    Ok(())
}
