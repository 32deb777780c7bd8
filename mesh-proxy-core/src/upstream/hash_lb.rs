//! Consistent hashing: the ring and Maglev's table.

use std::sync::Arc;

use twox_hash::XxHash64;

use super::Host;
use crate::config::{HashFunction, LbPolicy};

/// A table from hashes to hosts.
#[derive(Debug, Default)]
pub(crate) enum HashTable {
    #[default]
    None,
    /// Points in ascending order.
    Ring(Vec<(u64, Arc<Host>)>),
    Maglev(Vec<Arc<Host>>),
}

impl HashTable {
    pub(crate) fn build(policy: LbPolicy, hosts: &[Arc<Host>]) -> Self {
        match policy {
            _ if hosts.is_empty() => Self::None,
            LbPolicy::RingHash { min, max, function } => Self::ring(hosts, min, max, function),
            LbPolicy::Maglev { table_size } => Self::maglev(hosts, table_size.clamp(1, 5_000_011)),
            _ => Self::None,
        }
    }

    /// Each host gets points in proportion to its weight; the smallest share gets at least `min / total` of them.
    fn ring(hosts: &[Arc<Host>], min: u64, max: u64, function: HashFunction) -> Self {
        let total: u64 = hosts.iter().map(|h| u64::from(h.endpoint.weight)).sum();
        let least = hosts.iter().map(|h| h.endpoint.weight).min().unwrap_or(1);
        let least_share = f64::from(least) / total as f64;
        let scale = ((least_share * min as f64).ceil() / least_share).min(max as f64).min(8_388_608.0);
        let mut ring = Vec::with_capacity(scale as usize);
        let (mut current, mut target) = (0.0, 0.0);
        for host in hosts {
            target += scale * f64::from(host.endpoint.weight) / total as f64;
            let mut i = 0;
            while current < target {
                let key = format!("{}_{i}", host.address());
                ring.push((hash(function, key.as_bytes()), Arc::clone(host)));
                current += 1.0;
                i += 1;
            }
        }
        ring.sort_by_key(|(point, _)| *point);
        Self::Ring(ring)
    }

    /// Eisenbud et al., "Maglev" (NSDI 2016), with weights as Envoy: a host fills a slot each time its weighted turn
    /// comes.
    fn maglev(hosts: &[Arc<Host>], size: u64) -> Self {
        struct Builder<'a> {
            host: &'a Arc<Host>,
            offset: u64,
            skip: u64,
            next: u64,
            weight: f64,
            target: f64,
        }
        let most = hosts.iter().map(|h| h.endpoint.weight).max().unwrap_or(1);
        let mut builders: Vec<Builder<'_>> = hosts
            .iter()
            .map(|host| {
                let key = host.address().to_string();
                Builder {
                    host,
                    offset: XxHash64::oneshot(0, key.as_bytes()) % size,
                    skip: XxHash64::oneshot(1, key.as_bytes()) % (size - 1).max(1) + 1,
                    next: 0,
                    weight: f64::from(host.endpoint.weight),
                    target: 0.0,
                }
            })
            .collect();
        let mut table: Vec<Option<Arc<Host>>> = vec![None; size as usize];
        let mut filled = 0;
        let mut round = 0.0;
        while filled < size {
            round += 1.0;
            for builder in &mut builders {
                if filled == size {
                    break;
                }
                if round * builder.weight < builder.target {
                    continue;
                }
                builder.target += f64::from(most);
                loop {
                    let slot = ((builder.offset + builder.skip * builder.next) % size) as usize;
                    builder.next += 1;
                    if table[slot].is_none() {
                        table[slot] = Some(Arc::clone(builder.host));
                        filled += 1;
                        break;
                    }
                }
            }
        }
        Self::Maglev(table.into_iter().flatten().collect())
    }

    pub(crate) fn get(&self, hash: u64) -> Option<Arc<Host>> {
        match self {
            Self::None => None,
            Self::Ring(ring) => {
                let at = ring.partition_point(|(point, _)| *point < hash);
                ring.get(at).or_else(|| ring.first()).map(|(_, host)| Arc::clone(host))
            }
            Self::Maglev(table) => table.get((hash % table.len().max(1) as u64) as usize).cloned(),
        }
    }
}

fn hash(function: HashFunction, bytes: &[u8]) -> u64 {
    match function {
        HashFunction::XxHash => XxHash64::oneshot(0, bytes),
        HashFunction::Murmur2 => murmur2(bytes, 0xc70f_6907),
    }
}

/// MurmurHash64A (public domain algorithm by Austin Appleby), seeded as in libstdc++ and Envoy.
fn murmur2(bytes: &[u8], seed: u64) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut h = seed ^ (bytes.len() as u64).wrapping_mul(M);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let mut k = u64::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 47)).wrapping_mul(M);
        h = (h ^ k).wrapping_mul(M);
    }
    if !tail.is_empty() {
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        h = (h ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    h = (h ^ (h >> 47)).wrapping_mul(M);
    h ^ (h >> 47)
}
