//! All listeners, and which one a destination belongs to.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::ListenerRuntime;
use crate::lifecycle::Lifecycle;

/// A bound listener's place: its sockets stay while its configuration is swapped.
#[derive(Debug)]
pub(crate) struct ListenerSlot {
    pub(crate) current: ArcSwap<ListenerRuntime>,
    /// Closing stops accepting.
    pub(crate) sockets: Arc<Lifecycle>,
    pub(crate) bound: Vec<SocketAddr>,
}

/// An immutable view of all listeners.
#[derive(Debug, Default, Clone)]
pub(crate) struct ListenerTable {
    pub(crate) by_name: HashMap<Arc<str>, Arc<ListenerSlot>>,
    /// Listeners without sockets of their own and others, by address, for hand-off.
    by_address: HashMap<SocketAddr, Arc<ListenerSlot>>,
}

impl ListenerTable {
    /// The view with one listener added or replaced.
    pub(crate) fn with(&self, slot: Arc<ListenerSlot>) -> Self {
        let mut by_name = self.by_name.clone();
        let name = Arc::clone(&slot.current.load().config.name);
        by_name.insert(name, slot);
        Self::index(by_name)
    }

    /// The view without one listener.
    pub(crate) fn without(&self, name: &str) -> Self {
        let mut by_name = self.by_name.clone();
        by_name.remove(name);
        Self::index(by_name)
    }

    fn index(by_name: HashMap<Arc<str>, Arc<ListenerSlot>>) -> Self {
        let mut by_address = HashMap::new();
        for slot in by_name.values() {
            for address in &slot.current.load().config.addresses {
                by_address.insert(*address, Arc::clone(slot));
            }
        }
        Self { by_name, by_address }
    }

    /// The listener for a destination: the exact address, else the wildcard address with the same port.
    pub(crate) fn for_destination(&self, to: SocketAddr) -> Option<&Arc<ListenerSlot>> {
        let any: IpAddr = if to.is_ipv4() { [0_u8; 4].into() } else { [0_u16; 8].into() };
        self.by_address.get(&to).or_else(|| self.by_address.get(&SocketAddr::new(any, to.port())))
    }
}
