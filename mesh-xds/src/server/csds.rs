//! CSDS: the state of every client, over gRPC.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::pb::envoy::admin::v3::UpdateFailureState;
use crate::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use crate::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use crate::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};

use super::ads::AdsServer;
use super::clients::ClientStatus;
use super::status::{SyncState, TypeStatus};

impl AdsServer {
    /// The client status service. It tells everybody who may call it about every client, so it is not part of
    /// [`routes`](Self::routes): put it on a listener for operators.
    #[must_use]
    pub fn client_status(&self) -> ClientStatusDiscoveryServiceServer<Csds> {
        ClientStatusDiscoveryServiceServer::new(Csds { server: self.clone() })
    }
}

/// The implementation behind [`AdsServer::client_status`]. Node matchers are not supported and refused.
#[derive(Debug, Clone)]
pub struct Csds {
    server: AdsServer,
}

impl Csds {
    fn answer(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            return Err(Status::unimplemented("node_matchers are not supported; name a node or none"));
        }
        let wanted = request.node.as_ref().map(|node| node.id.as_str()).filter(|id| !id.is_empty());
        let clients = self.server.clients().into_iter();
        let clients = clients.filter(|c| wanted.is_none_or(|id| c.client.node.id == id));
        Ok(ClientStatusResponse { config: clients.map(|c| config(&c)).collect() })
    }
}

fn config(status: &ClientStatus) -> ClientConfig {
    let types = status.types.iter().map(|(type_url, status)| GenericXdsConfig {
        type_url: type_url.as_str().to_owned(),
        version_info: status.version_acked.clone(),
        config_status: config_status(status).into(),
        error_state: status.error.as_ref().map(|nack| UpdateFailureState {
            details: nack.message.clone(),
            version_info: status.version_sent.clone(),
            ..Default::default()
        }),
        ..Default::default()
    });
    ClientConfig {
        node: Some((*status.client.node).clone()),
        generic_xds_configs: types.collect(),
        client_scope: status.client.group.to_string(),
        ..Default::default()
    }
}

fn config_status(status: &TypeStatus) -> ConfigStatus {
    match status.state() {
        SyncState::Synced => ConfigStatus::Synced,
        SyncState::Stale => ConfigStatus::Stale,
        SyncState::NotSent => ConfigStatus::NotSent,
        SyncState::Error => ConfigStatus::Error,
        SyncState::Ignored => ConfigStatus::Unknown,
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |request| this.answer(&request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.answer(request.get_ref()).map(Response::new)
    }
}
