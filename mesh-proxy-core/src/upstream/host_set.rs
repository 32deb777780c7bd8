//! The hosts of a cluster by priority, locality and health; rebuilt whenever one of these changes.

use std::sync::Arc;

use super::Host;
use crate::config::{EndpointHealth, Locality};

/// An immutable view of a cluster's hosts.
#[derive(Debug, Default)]
pub(crate) struct HostSet {
    pub(crate) all: Vec<Arc<Host>>,
    pub(crate) priorities: Vec<Priority>,
    /// Share of traffic of each priority, percent, summing to 100 unless there is no host.
    pub(crate) loads: Vec<u32>,
    /// Priorities that ignore health.
    pub(crate) panic: Vec<bool>,
}

/// The hosts of one priority.
#[derive(Debug, Default)]
pub(crate) struct Priority {
    pub(crate) all: Group,
    pub(crate) healthy: Group,
    pub(crate) degraded: Group,
    /// With locality weights: healthy hosts and the effective weight of each locality.
    pub(crate) localities: Vec<(Group, u64)>,
}

/// Hosts to choose from.
#[derive(Debug, Default, Clone)]
pub(crate) struct Group {
    pub(crate) hosts: Vec<Arc<Host>>,
    /// Cumulative weights; empty when all weights are equal.
    pub(crate) cumulative: Vec<u64>,
}

impl Group {
    fn new(mut hosts: Vec<Arc<Host>>) -> Self {
        // Collected through a filter, it has room for twice as many.
        hosts.shrink_to_fit();
        let equal = hosts.windows(2).all(|pair| pair[0].endpoint.weight == pair[1].endpoint.weight);
        let mut total = 0;
        let cumulative = if equal {
            Vec::new()
        } else {
            hosts
                .iter()
                .map(|host| {
                    total += u64::from(host.endpoint.weight);
                    total
                })
                .collect()
        };
        Self { hosts, cumulative }
    }

    /// One host by weight, from a random number.
    pub(crate) fn by_weight(&self, random: impl Fn(u64) -> u64) -> Option<&Arc<Host>> {
        match self.cumulative.last() {
            None if self.hosts.is_empty() => None,
            None => self.hosts.get(random(self.hosts.len() as u64) as usize),
            Some(total) => {
                let point = random(*total);
                self.hosts.get(self.cumulative.partition_point(|c| *c <= point))
            }
        }
    }
}

/// A locality's hosts with its weight and priority, as assembled from an assignment.
#[derive(Debug)]
pub(crate) struct LocalityHosts {
    pub(crate) hosts: Vec<Arc<Host>>,
    pub(crate) locality: Arc<Locality>,
    pub(crate) weight: u32,
    pub(crate) priority: u32,
}

fn healthy(host: &Host) -> bool {
    host.endpoint.health == EndpointHealth::Healthy && !host.outlier.ejected()
}

fn degraded(host: &Host) -> bool {
    host.endpoint.health == EndpointHealth::Degraded && !host.outlier.ejected()
}

impl HostSet {
    /// Builds the view and the priority loads (Envoy: overprovisioned health of each priority, in order, up to 100 %;
    /// below the panic threshold a priority counts all its hosts).
    pub(crate) fn build(
        localities: &[LocalityHosts],
        overprovisioning: u32,
        panic_threshold: f64,
        locality_weighted: bool,
    ) -> Self {
        let count = localities.iter().map(|l| l.priority as usize + 1).max().unwrap_or(0).min(128);
        let total = localities.iter().map(|l| l.hosts.len()).sum();
        let mut set =
            Self { all: Vec::with_capacity(total), priorities: Vec::with_capacity(count), ..Self::default() };
        for level in 0..count {
            let of_level = || localities.iter().filter(move |l| l.priority as usize == level);
            let pick = |test: fn(&Host) -> bool| {
                Group::new(of_level().flat_map(|l| &l.hosts).filter(|h| test(h)).cloned().collect())
            };
            let mut priority = Priority {
                all: pick(|host| host.endpoint.health != EndpointHealth::Draining),
                healthy: pick(healthy),
                degraded: pick(degraded),
                localities: Vec::new(),
            };
            if locality_weighted {
                priority.localities = of_level()
                    .map(|l| {
                        let fit = l.hosts.iter().filter(|h| healthy(h)).cloned().collect::<Vec<_>>();
                        let share = (fit.len() as u64 * u64::from(overprovisioning) * 10)
                            .checked_div(l.hosts.len() as u64)
                            .unwrap_or(0)
                            .min(1000);
                        (Group::new(fit), u64::from(l.weight) * share)
                    })
                    .filter(|(group, weight)| !group.hosts.is_empty() && *weight > 0)
                    .collect();
            }
            set.all.extend(of_level().flat_map(|l| &l.hosts).cloned());
            set.priorities.push(priority);
        }
        set.compute_loads(overprovisioning, panic_threshold);
        set
    }

    fn compute_loads(&mut self, overprovisioning: u32, panic_threshold: f64) {
        let share =
            |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
        let health: Vec<u32> = self
            .priorities
            .iter()
            .map(|p| {
                let fit = p.healthy.hosts.len() + p.degraded.hosts.len();
                (share(fit, p.all.hosts.len()) * f64::from(overprovisioning) / 100.0).min(100.0) as u32
            })
            .collect();
        let total: u32 = health.iter().sum::<u32>().min(100);
        let mut left = 100;
        self.loads = health
            .iter()
            .map(|h| {
                // Normalised when all priorities together cannot carry the whole traffic.
                let load = (h * 100).checked_div(total).unwrap_or(0).min(left);
                left -= load;
                load
            })
            .collect();
        if let Some(first) = self.loads.iter_mut().find(|load| **load > 0) {
            *first += left;
        } else if let Some(first) = self.priorities.iter().position(|p| !p.all.hosts.is_empty()) {
            self.loads[first] = 100;
        }
        let all_overloaded = total < 100;
        self.panic = self
            .priorities
            .iter()
            .map(|p| {
                let fit = share(p.healthy.hosts.len() + p.degraded.hosts.len(), p.all.hosts.len());
                // A priority panics only when the others cannot take its traffic.
                all_overloaded && fit < panic_threshold
            })
            .collect();
    }

    /// The group of hosts for one pick: priority by load, then health, then locality.
    pub(crate) fn group(
        &self,
        random: &dyn Fn(u64) -> u64,
        excluded: &dyn Fn(usize) -> bool,
    ) -> Option<&Group> {
        let level = match self.loads.as_slice() {
            [] => return None,
            [_] => 0,
            loads => {
                let usable: u32 =
                    loads.iter().enumerate().filter(|(i, _)| !excluded(*i)).map(|(_, l)| l).sum();
                let use_exclusion = usable > 0;
                let total = if use_exclusion { usable } else { loads.iter().sum() };
                if total == 0 {
                    return None;
                }
                let mut point = random(u64::from(total)) as u32;
                loads.iter().enumerate().filter(|(i, _)| !use_exclusion || !excluded(*i)).find_map(
                    |(i, load)| {
                        if point < *load {
                            Some(i)
                        } else {
                            point -= load;
                            None
                        }
                    },
                )?
            }
        };
        let priority = &self.priorities[level];
        if self.panic[level] {
            return Some(&priority.all);
        }
        if !priority.localities.is_empty() {
            let total: u64 = priority.localities.iter().map(|(_, w)| w).sum();
            let mut point = random(total);
            return priority.localities.iter().find_map(|(group, weight)| {
                if point < *weight {
                    Some(group)
                } else {
                    point -= weight;
                    None
                }
            });
        }
        if !priority.healthy.hosts.is_empty() { Some(&priority.healthy) } else { Some(&priority.degraded) }
    }
}

#[cfg(test)]
mod tests;
