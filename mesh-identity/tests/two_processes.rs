//! The README's two programs, as two processes: mutual TLS by SPIFFE ID.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use mesh_identity::{
    Ca, SpiffeId, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
};

/// Cargo builds the examples before it runs the tests of a package, beside the directory of the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is built by `cargo test`", program.display());
    Command::new(program)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_client_names_the_server_and_the_server_sees_the_client() {
    let domain = TrustDomain::parse("mesh.example").unwrap();
    let ca =
        Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("root.pem"), ca.bundle().to_pem()).unwrap();
    for name in ["cart", "web"] {
        let id = SpiffeId::parse(&format!("spiffe://mesh.example/ns/shop/sa/{name}")).unwrap();
        let credential = ca.issue_svid(&id, None).unwrap();
        std::fs::write(path(&format!("{name}.pem")), credential.chain_pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), credential.key().to_pem().as_bytes()).unwrap();
    }
    let mut server = example("server");
    server.arg("127.0.0.1:0").args([path("cart.pem"), path("cart.key"), path("root.pem")]);
    let mut server = Running(server.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap();

    let ask = |expected: &str| -> Output {
        let mut client = example("client");
        client.args([address, expected]).args([path("web.pem"), path("web.key"), path("root.pem")]);
        client.output().unwrap()
    };
    let good = ask("spiffe://mesh.example/ns/shop/sa/cart");
    assert_eq!(String::from_utf8_lossy(&good.stdout), "hello spiffe://mesh.example/ns/shop/sa/web\n");
    let wrong = ask("spiffe://mesh.example/ns/shop/sa/payments");
    assert!(!wrong.status.success() && wrong.stdout.is_empty(), "{wrong:?}");
}
