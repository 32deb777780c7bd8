//! Prints the crate's figures: `cargo bench -p mesh-identity`. One thread; ratios within one run are what counts.

use std::{hint::black_box, sync::Arc, time::Duration};

use mesh_identity::{
    Authorizer, Ca, Identity, RenewalPolicy, SpiffeId, SpiffeIdRef, TrustDomain, WallClock,
    ca::{CertificateRequest, IssuancePolicy, KeyKind, RootOptions, SigningRequest},
    client_config, server_config,
    source::{FetchError, FetchedSvid, ManyFetcher, SvidManager},
    x509::{PeerUsage, verify_chain},
};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    pki_types::{ServerName, UnixTime},
};
use tokio::time::Instant;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domain = TrustDomain::parse("cluster.local")?;
    let ca = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system())?;
    let id = SpiffeId::parse(CART)?;

    let parse = per_call(2_000_000, || {
        black_box(SpiffeIdRef::parse(black_box(CART)).is_ok());
    });
    println!("parse a SPIFFE ID                     {:>9.1} ns   (target 100)", nanos(parse));

    let request = CertificateRequest::generate(KeyKind::EcP256, &id)?;
    let signing = SigningRequest { csr_pem: request.csr_pem(), id: &id, lifetime: None };
    let sign = per_call(3_000, || {
        black_box(ca.sign(&signing).is_ok());
    });
    println!("sign a CSR (P-256)                    {:>9.0} /s   (target 5000)", 1.0 / sign.as_secs_f64());

    let credential = ca.issue_svid(&id, None)?;
    let leaf = credential.chain()[0].clone();
    let bundles = ca.bundle_set();
    let now = UnixTime::since_unix_epoch(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?);
    let ours = per_call(5_000, || {
        black_box(verify_chain(&leaf, &[], &bundles, PeerUsage::Client, now).is_ok());
    });
    let bundle = ca.bundle();
    let algorithms = mesh_identity::tls::crypto_provider().signature_verification_algorithms;
    let webpki_alone = per_call(5_000, || {
        let leaf = webpki::EndEntityCert::try_from(&leaf);
        let verified = leaf.is_ok_and(|leaf| {
            let usage = webpki::KeyUsage::client_auth();
            leaf.verify_for_usage(algorithms.all, bundle.anchors(), &[], now, usage, None, None).is_ok()
        });
        assert!(black_box(verified));
    });
    let identity = Identity::fixed(Some(credential), bundles, WallClock::system());
    let server = server_config(&identity, Authorizer::trust_domain(ca.trust_domain().clone()))?;
    let client = client_config(&identity, Authorizer::exact(id))?;
    let handshake = per_call(500, || handshake(&client, &server));
    let added = ours.saturating_sub(webpki_alone) * 2;
    println!("verify a chain, ours / webpki alone   {:>9.1} / {:.1} us", micros(ours), micros(webpki_alone));
    println!("mutual handshake, both ends           {:>9.1} us", micros(handshake));
    let share = added.as_secs_f64() / (handshake.saturating_sub(added)).as_secs_f64();
    println!("our verifiers add to a handshake      {:>9.1} %    (target 10)", share * 100.0);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(thousand_identities(Arc::new(ca)))
}

async fn thousand_identities(ca: Arc<Ca>) -> Result<(), Box<dyn std::error::Error>> {
    struct Local(Arc<Ca>);
    impl ManyFetcher for Local {
        async fn fetch(&self, id: &SpiffeId) -> Result<FetchedSvid, FetchError> {
            let credential = self.0.issue_svid(id, None).map_err(|e| FetchError::new(e.reason(), e))?;
            Ok(FetchedSvid { credential: Arc::new(credential), bundles: self.0.bundle_set() })
        }
    }
    let before = resident_kib()?;
    let manager = SvidManager::spawn(Local(ca), RenewalPolicy::default(), WallClock::system(), 16);
    let ids = (0..1000).map(|n| SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/w{n}")));
    let identities: Vec<_> = ids.map(|id| id.map(|id| manager.add(id))).collect::<Result<_, _>>()?;
    for identity in &identities {
        identity.ready().await;
    }
    let after = resident_kib()?;
    println!(
        "1,000 identities, resident            {:>9.1} MiB  (target 10)",
        (after - before) as f64 / 1024.0
    );
    Ok(())
}

fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) {
    let name = ServerName::try_from("cart.shop").expect("a DNS name");
    let mut client = ClientConnection::new(client.clone(), name).expect("a client");
    let mut server = ServerConnection::new(server.clone()).expect("a server");
    let mut bytes = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        bytes.clear();
        client.write_tls(&mut bytes).expect("memory");
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().expect("the client's messages");
        }
        bytes.clear();
        server.write_tls(&mut bytes).expect("memory");
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("the server's messages");
        }
    }
}

/// The best of five rounds: noise only ever adds.
fn per_call(times: u32, mut call: impl FnMut()) -> Duration {
    let round = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..times).for_each(|_| call());
        start.elapsed() / times
    };
    (0..5).map(|_| round(&mut call)).min().unwrap_or_default()
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn resident_kib() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
