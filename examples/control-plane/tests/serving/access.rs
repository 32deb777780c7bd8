//! Who is refused, and how.

use mesh_identity::istio_ca::IstioCaError;
use mesh_xds::client::AdsClient;
use tonic::Code;

use crate::fixture::{DEADLINE, Fixture, accept};

/// The status with which the server ends the client's stream.
async fn refusal(client: &AdsClient) -> String {
    let mut connection = client.connection();
    let failed = connection.wait_for(|state| state.last_error.is_some());
    let state = tokio::time::timeout(DEADLINE, failed).await.expect("in time").expect("the client runs");
    format!("{:?}", state.last_error)
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_impostors_are_refused() {
    let fixture = Fixture::start().await;

    for (why, token) in
        [("another audience", fixture.token("client", "vault")), ("no token at all", "nonsense".to_owned())]
    {
        match fixture.certificate("client", token).await {
            Err(IstioCaError::Refused { status }) => {
                assert_eq!(status.code(), Code::Unauthenticated, "{why}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }

    let nobody = fixture.client("client", "client", None).start().expect("a client");
    let _configuration = nobody.configuration(accept);
    let reason = refusal(&nobody).await;
    assert!(reason.contains("Unauthenticated"), "{reason}");

    // A sound identity of another account than the node's.
    let identity =
        fixture.certificate("reviews", fixture.token("reviews", "istio-ca")).await.expect("an SVID");
    for (name, account) in [("client", "client"), ("client", "reviews")] {
        let impostor = fixture.client(name, account, Some(identity.clone())).start().expect("a client");
        let _configuration = impostor.configuration(accept);
        let reason = refusal(&impostor).await;
        assert!(reason.contains("PermissionDenied"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_signs_for_the_caller_whatever_the_request_says() {
    let fixture = Fixture::start().await;
    // The request asks for `admin`; the token is `client`'s.
    let identity = fixture.certificate("admin", fixture.token("client", "istio-ca")).await.expect("an SVID");
    let id = identity.current().id().map(ToString::to_string);
    assert_eq!(id.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/client"));
}
