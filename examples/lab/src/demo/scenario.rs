//! The demo's YAML: exactly what one would `kubectl apply`, written to a directory and edited there.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::{During as _, LabError, Result};
use crate::state::{private_dir, write_atomically};

const FILES: [(&str, &str); 6] = [
    ("namespace.yaml", include_str!("../../scenario/namespace.yaml")),
    ("reviews.yaml", include_str!("../../scenario/reviews.yaml")),
    ("client.yaml", include_str!("../../scenario/client.yaml")),
    ("rogue.yaml", include_str!("../../scenario/rogue.yaml")),
    ("outside.yaml", include_str!("../../scenario/outside.yaml")),
    ("security.yaml", include_str!("../../scenario/security.yaml")),
];
const ROUTING: &str = include_str!("../../scenario/routing.yaml");
const IMPOSTOR: &str = include_str!("../../scenario/impostor.yaml");
/// The name that [`IMPOSTOR`] gives to the rogue pod.
pub(super) const IMPOSTOR_URL: &str = "http://impostor.lab:9080/";

/// The directory of the scenario.
#[derive(Debug)]
pub(super) struct Scenario {
    directory: PathBuf,
}

impl Scenario {
    /// Writes the scenario as it begins.
    pub(super) fn write(state: &Path) -> Result<Self> {
        let directory = state.join("config");
        private_dir(&directory)?;
        for (name, text) in FILES.into_iter().chain([("routing.yaml", ROUTING)]) {
            fs::write(directory.join(name), text).during(format!("write {name}"))?;
        }
        Ok(Self { directory })
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Edits the VirtualService: 90/10 becomes 50/50.
    pub(super) fn split_evenly(&self) -> Result<()> {
        self.edit("routing.yaml", &[("weight: 90", "weight: 50"), ("weight: 10", "weight: 50")])
    }

    /// Edits the PeerAuthentication.
    pub(super) fn set_mtls(&self, strict: bool) -> Result<()> {
        let (from, to) = if strict { ("PERMISSIVE", "STRICT") } else { ("STRICT", "PERMISSIVE") };
        self.edit("security.yaml", &[(from, to)])
    }

    /// Names `rogue`'s address as one of `account`'s.
    pub(super) fn write_impostor(&self, rogue: Ipv4Addr, account: &str) -> Result<()> {
        let text = IMPOSTOR
            .replace("address: ADDRESS", &format!("address: {rogue}"))
            .replace("serviceAccount: reviews", &format!("serviceAccount: {account}"));
        write_atomically(&self.directory.join("impostor.yaml"), text.as_bytes())
    }

    /// Replaces each text, which must be there.
    fn edit(&self, name: &str, changes: &[(&str, &str)]) -> Result<()> {
        let path = self.directory.join(name);
        let mut text = fs::read_to_string(&path).during(format!("read {name}"))?;
        for (from, to) in changes {
            if !text.contains(from) {
                return Err(LabError::File { path, message: format!("does not say {from:?}") });
            }
            text = text.replace(from, to);
        }
        write_atomically(&path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::objects;
    use crate::pod::process;
    use crate::pod::spec::PodSpec;

    #[test]
    fn every_file_is_valid_and_every_edit_changes_it() {
        let state = tempfile::tempdir().unwrap();
        let scenario = Scenario::write(state.path()).unwrap();
        let (before, problems) = objects::load(scenario.directory()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(before.keys().filter(|key| key.kind == "Pod").count(), 6);
        scenario.split_evenly().unwrap();
        scenario.set_mtls(false).unwrap();
        scenario.write_impostor(Ipv4Addr::new(10, 0, 0, 9), "rogue").unwrap();
        let (after, problems) = objects::load(scenario.directory()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let get = |kind: &str, name: &str| &after[&objects::Key::new(kind, "shop", name)];
        assert_eq!(get("VirtualService", "reviews")["spec"]["http"][0]["route"][1]["weight"], 50);
        assert_eq!(get("PeerAuthentication", "default")["spec"]["mtls"]["mode"], "PERMISSIVE");
        let endpoint = &get("ServiceEntry", "impostor")["spec"]["endpoints"][0];
        assert_eq!(
            (endpoint["address"].as_str(), endpoint["serviceAccount"].as_str()),
            (Some("10.0.0.9"), Some("rogue"))
        );
        assert!(scenario.set_mtls(false).is_err(), "already");
    }

    #[test]
    fn what_the_injector_makes_of_the_pods_can_be_run_here() {
        use mesh_inject::{Cluster, Injector, Request, Settings};

        let state = tempfile::tempdir().unwrap();
        let scenario = Scenario::write(state.path()).unwrap();
        let (objects, _) = objects::load(scenario.directory()).unwrap();
        let injector = Injector::new(Settings::default()).unwrap();
        let pods: Vec<_> =
            objects.iter().filter(|(key, _)| key.kind == "Pod" && key.namespace == "shop").collect();
        assert_eq!(pods.len(), 4);
        for (key, pod) in pods {
            let injected = injector.inject(&Request::new(pod, "shop", &Cluster::default())).unwrap().pod;
            let spec = PodSpec::parse(&key.to_string(), &injected).unwrap();
            let programs: Vec<String> = spec
                .init_containers
                .iter()
                .chain(&spec.containers)
                .map(|container| {
                    process::of("Pod", &spec, container, BTreeMap::new()).unwrap().argv.remove(2)
                })
                .collect();
            assert_eq!(programs, ["mesh-init", "mesh-sidecar", "mesh-echo"]);
            let sidecar = &spec.init_containers[1];
            assert!(
                sidecar.is_sidecar() && sidecar.startup_probe.is_some() && sidecar.readiness_probe.is_some()
            );
            let init = process::of("Pod", &spec, &spec.init_containers[0], BTreeMap::new()).unwrap();
            assert_eq!(
                (init.uid, init.capabilities),
                (0, ["CAP_NET_ADMIN", "CAP_NET_RAW"].map(String::from).to_vec())
            );
            let proxy = process::of("Pod", &spec, sidecar, BTreeMap::new()).unwrap();
            assert_eq!((proxy.uid, proxy.gid, proxy.capabilities.len()), (1337, 1337, 0));
        }
    }
}
