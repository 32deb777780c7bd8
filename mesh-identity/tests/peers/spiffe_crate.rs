//! The `spiffe` crate: a client of our Workload API, and an oracle for our parser.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt, ready};
use libtest_mimic::Trial;
use mesh_identity::{
    Identity, SpiffeId, WallClock,
    workload_api::{AttestError, Attested, Attestor, PeerCredentials, WorkloadApiServer, serve_unix},
};
use tonic::transport::Server;

use crate::support::{Outcome, WEB, id, new_ca, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("spiffe_crate::takes_its_svid_from_us_and_follows_rotation", true, follows_rotation),
        trial("spiffe_crate::agrees_about_ids", true, agrees_about_ids),
    ]
}

#[derive(Debug)]
struct Everybody(Identity);

impl Attestor for Everybody {
    fn attest(&self, _: PeerCredentials) -> BoxFuture<'_, Result<Vec<Attested>, AttestError>> {
        ready(Ok(vec![Attested { identity: self.0.clone(), hint: String::new() }])).boxed()
    }
}

async fn follows_rotation() -> Outcome {
    let ca = new_ca();
    let (publisher, identity) = Identity::channel(WallClock::system());
    let renew = || {
        let credential = ca.issue_svid(&id(WEB), None)?;
        let serial = credential.chain()[0].to_vec();
        publisher.publish(Some(Arc::new(credential)), ca.bundle_set());
        Ok::<_, Box<dyn std::error::Error>>(serial)
    };
    let first = renew()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("api.sock");
    let service = WorkloadApiServer::new(Everybody(identity)).into_service();
    tokio::spawn(serve_unix(socket.clone(), 0o600, Server::builder().add_service(service)));
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let source = spiffe::X509Source::builder().endpoint(format!("unix:{}", socket.display())).build().await?;
    let svid = source.svid()?;
    assert_eq!(svid.spiffe_id().to_string(), WEB);
    assert_eq!(svid.leaf().as_bytes(), first);
    let second = renew()?;
    while source.svid()?.leaf().as_bytes() != second {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Except for case: that crate rewrites upper case in a trust domain, ours refuses it and rewrites nothing.
async fn agrees_about_ids() -> Outcome {
    let texts = [
        "spiffe://td.example/a",
        "spiffe://td.example",
        "spiffe://td.example/",
        "spiffe://td.example//a",
        "spiffe://td.example/a/",
        "spiffe://td.example/./a",
        "spiffe://td.example/../a",
        "spiffe://td.example/...",
        "spiffe://td.example:80/a",
        "spiffe://u@td.example/a",
        "spiffe://td.example/a?b",
        "spiffe://td.example/a#b",
        "spiffe://td.example/%61",
        "spiffe:///a",
        "spiffe://",
        "",
        "http://td.example/a",
        "spiffe://td_x-1.example/A.b-C_9",
        "spiffe://td.example/a b",
        "spiffe://bücher/a",
        "spiffe://td.example/é",
    ];
    for text in texts {
        assert_eq!(SpiffeId::parse(text).is_ok(), spiffe::SpiffeId::new(text).is_ok(), "{text:?}");
    }
    Ok(())
}
