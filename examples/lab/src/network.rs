//! The lab's network: a bridge in the node namespace, a veth pair per pod. Everything over rtnetlink.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};

use crate::error::{During as _, LabError, Result};
use crate::netns::NetNs;

/// The bridge's address: the pods' gateway and the node's address.
pub(crate) const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Length of the pod network's prefix.
const POD_PREFIX: u8 = 16;
const BRIDGE: &str = "mesh0";

/// The node's side.
#[derive(Debug, Clone)]
pub(crate) struct NodeNetwork {
    handle: Handle,
    bridge: u32,
}

impl NodeNetwork {
    /// Brings up the loopback and the bridge in the namespace of the calling process.
    pub(crate) async fn create() -> Result<Self> {
        let (connection, handle, _) = new_connection().during("open an rtnetlink socket")?;
        tokio::spawn(connection);
        up(&handle, "lo").await?;
        handle
            .link()
            .add(LinkBridge::new(BRIDGE).up().build())
            .execute()
            .await
            .map_err(|error| network("create the bridge", &error))?;
        // A router answers "unreachable" at once where an end host would swallow the packet: connections to services
        // that nobody redirects fail quickly. Not essential, so a read-only /proc/sys is fine.
        if let Err(error) = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
            tracing::debug!(%error, "the node does not route");
        }
        let bridge = index(&handle, BRIDGE).await?;
        address(&handle, bridge, NODE_IP).await?;
        Ok(Self { handle, bridge })
    }

    /// Connects `pod` with a veth pair named after `number`, and gives it an address and a default route.
    pub(crate) async fn attach(&self, pod: &NetNs, number: u32, ip: Ipv4Addr) -> Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0")
            .address(mac(ip).to_vec())
            .setns_by_fd(pod.raw())
            .build();
        let host = format!("veth{number}");
        let link = LinkVeth::new(&host, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge)
            .build();
        let request = self.handle.link().add(link).execute();
        request.await.map_err(|error| network(&format!("create {host}"), &error))?;
        // Neither end can be brought up before both exist.
        up(&self.handle, &host).await?;
        pod.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .during("start a runtime for rtnetlink")?;
            runtime.block_on(configure_pod(ip))
        })
        .await
    }

    /// Removes a pod's link; the peer goes with it.
    pub(crate) async fn detach(&self, number: u32) -> Result<()> {
        let link = index(&self.handle, &format!("veth{number}")).await?;
        let request = self.handle.link().del(link).execute();
        request.await.map_err(|error| network(&format!("delete veth{number}"), &error))
    }
}

/// The inside of a pod: loopback, address, and a default route so that service addresses are routable at all.
async fn configure_pod(ip: Ipv4Addr) -> Result<()> {
    let (connection, handle, _) = new_connection().during("open an rtnetlink socket in the pod")?;
    tokio::spawn(connection);
    up(&handle, "lo").await?;
    let eth0 = up(&handle, "eth0").await?;
    address(&handle, eth0, ip).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(NODE_IP).build();
    let request = handle.route().add(route).execute();
    request.await.map_err(|error| network("add the default route", &error))
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let found = handle.link().get().match_name(name).execute().try_next().await;
    match found {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => {
            Err(LabError::Network { what: format!("find {name}"), message: String::from("not there") })
        }
        Err(error) => Err(network(&format!("find {name}"), &error)),
    }
}

async fn up(handle: &Handle, name: &str) -> Result<u32> {
    let index = index(handle, name).await?;
    let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    let request = handle.link().set(message).execute();
    request.await.map_err(|error| network(&format!("bring {name} up"), &error))?;
    Ok(index)
}

async fn address(handle: &Handle, link: u32, ip: Ipv4Addr) -> Result<()> {
    let request = handle.address().add(link, IpAddr::V4(ip), POD_PREFIX).execute();
    request.await.map_err(|error| network(&format!("add address {ip}"), &error))
}

/// A locally administered address that says which pod it is.
fn mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x02, 0x42, a, b, c, d]
}

fn network(what: &str, error: &rtnetlink::Error) -> LabError {
    LabError::Network { what: what.to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_local_and_unicast() {
        let first = mac(Ipv4Addr::new(10, 244, 1, 2))[0];
        assert_eq!(first & 0b11, 0b10);
    }
}
