//! The seven steps.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Volume;
use super::facts::{self, Got, SIDECAR, Session};
use super::load::Load;
use super::report::{Latency, Report, Rotation, SidecarFacts, share};
use super::scenario::{IMPOSTOR_URL, Scenario};
use crate::error::{LabError, Result};
use crate::kubelet::Pod;
use crate::lab::{CONTROL_PLANE_LIMIT, Lab};
use crate::objects::Key;
use crate::state::write_atomically;

/// Time for pods to become ready.
const PODS_LIMIT: Duration = Duration::from_secs(20);
/// Time for an edit to take effect.
const EDIT_LIMIT: Duration = Duration::from_secs(15);
/// Pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(50);
const REVIEWS_URL: &str = "http://reviews:9080/";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const REVIEWS_ID: &str = "spiffe://cluster.local/ns/shop/sa/reviews";
const ROGUE_ID: &str = "spiffe://cluster.local/ns/shop/sa/rogue";
/// What a caller may claim about itself; none of it may reach the app.
const FORGED: [&str; 3] = [
    "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/forged",
    "x-envoy-original-dst-host: 10.9.8.7:1",
    "x-envoy-internal: forged",
];

/// The demo while it runs.
#[derive(Debug)]
pub(super) struct Demo<'a> {
    lab: &'a Lab,
    scenario: &'a Scenario,
    volume: Volume,
    state: &'a Path,
    report: &'a mut Report,
    began: Instant,
    pods: BTreeMap<String, Arc<Pod>>,
}

impl<'a> Demo<'a> {
    /// A demo on a lab in which nothing runs yet.
    pub(super) fn new(
        lab: &'a Lab,
        scenario: &'a Scenario,
        volume: Volume,
        state: &'a Path,
        report: &'a mut Report,
    ) -> Self {
        Self { lab, scenario, volume, state, report, began: Instant::now(), pods: BTreeMap::new() }
    }

    /// All steps, in order.
    pub(super) async fn run(&mut self) -> Result<()> {
        self.say("starting the control plane");
        self.lab.control_plane.start(CONTROL_PLANE_LIMIT).await?;
        self.start_pods().await?;
        self.say("pods are ready; the first request");
        self.first_request().await?;
        self.load().await?;
        self.say("plaintext from outside the mesh");
        self.plaintext().await?;
        self.say("a valid certificate of somebody else");
        self.impostor().await?;
        self.say("latency with and without the mesh");
        self.latency().await?;
        self.collect().await?;
        Ok(())
    }

    fn say(&self, what: &str) {
        eprintln!("[{:5.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    fn pod(&self, name: &str) -> Result<&Arc<Pod>> {
        self.pods.get(name).ok_or_else(|| LabError::Usage(format!("the scenario has no pod {name}")))
    }

    /// The pods that have a sidecar.
    fn meshed(&self) -> Vec<Arc<Pod>> {
        self.pods.values().filter(|pod| pod.key.namespace == "shop").cloned().collect()
    }

    /// Step 2: every pod through the injector, all at once, then ready.
    async fn start_pods(&mut self) -> Result<()> {
        let wanted: Vec<(Key, Value)> = self.lab.cluster.pods();
        self.say(&format!("{} pods through admission", wanted.len()));
        let created = wanted.iter().map(|(key, pod)| self.lab.create_pod(key, pod));
        let mut injected = Vec::new();
        for created in futures_util::future::join_all(created).await {
            let (pod, operations) = created?;
            if operations.is_some() {
                injected.push(pod.key.name.clone());
            }
            self.pods.insert(pod.key.name.clone(), pod);
        }
        let ready = self.pods.values().map(|pod| pod.wait_ready(PODS_LIMIT));
        futures_util::future::try_join_all(ready).await?;
        self.lab.write_listing(self.state)?;
        injected.sort();
        let expected = ["client", "reviews-v1", "reviews-v2", "rogue"];
        self.report.promise(
            "the injector patched exactly the pods of the labelled namespace",
            injected == expected,
            injected.join(", "),
        );
        Ok(())
    }

    /// Steps 3 and 4: names, redirection, mutual TLS, and what the app gets to see.
    async fn first_request(&mut self) -> Result<()> {
        let client = self.pod("client")?;
        for (version, pod) in [("v1", "reviews-v1"), ("v2", "reviews-v2")] {
            self.until_known(&format!("outbound|9080|{version}|reviews.shop.svc.cluster.local"), pod).await?;
        }
        let got = until("a first answer through the mesh", EDIT_LIMIT, || async {
            let got = facts::get(client, REVIEWS_URL, &FORGED).await?;
            Ok((got.status == Some(200)).then_some(got.clone()).ok_or_else(|| got.describe()))
        })
        .await?;
        let headers = got.body["headers"].to_string();
        let xfcc = got.body["headers"]["x-forwarded-client-cert"].to_string();
        let remote = got.body["remote"].as_str().unwrap_or_default().to_owned();
        self.report.promise(
            "forged identity headers do not reach the app",
            !headers.contains("forged") && !headers.contains("10.9.8.7"),
            &xfcc,
        );
        self.report.promise("the app is told the caller's identity", xfcc.contains(CLIENT_ID), &xfcc);
        self.report.promise("the app is called from 127.0.0.6", remote.starts_with("127.0.0.6:"), &remote);
        Ok(())
    }

    /// Step 5: one load through rotation, the change of weights and the death of the control plane.
    async fn load(&mut self) -> Result<()> {
        let client = Arc::clone(self.pod("client")?);
        let mut load = Load::open(&client, REVIEWS_URL, self.volume.rate)?;
        self.say(&format!("load at {} requests/s", self.volume.rate));
        let before = self.split().await?;
        load.start("before").await?;
        self.rotate(&mut load).await?;
        self.fill(&mut load).await?;
        self.finish(&mut load).await?;
        self.report.split_before = difference(&before, &self.split().await?);
        let v1 = share(&self.report.split_before, "v1");
        self.report.promise("90/10 before the edit", (v1 - 90.0).abs() <= 5.0, format_args!("{v1:.1} % v1"));

        self.say("VirtualService 90/10 -> 50/50");
        load.start("edit").await?;
        self.scenario.split_evenly()?;
        until("the new weights in the client's sidecar", EDIT_LIMIT, || async {
            let dump = facts::admin(&client, "/config_dump?resource=dynamic_route_configs").await?;
            let active = facts::has_weights(&dump, &[50, 50]);
            Ok(active.then_some(()).ok_or_else(|| String::from("still the old ones")))
        })
        .await?;
        self.finish(&mut load).await?;

        let before = self.split().await?;
        load.start("after").await?;
        self.restart_control_plane(&mut load).await?;
        self.fill(&mut load).await?;
        self.finish(&mut load).await?;
        self.report.split_after = difference(&before, &self.split().await?);
        let v1 = share(&self.report.split_after, "v1");
        self.report.promise("50/50 after the edit", (v1 - 50.0).abs() <= 8.0, format_args!("{v1:.1} % v1"));

        let fewest =
            self.report.split_before.values().sum::<u64>().min(self.report.split_after.values().sum());
        self.report.promise("at least 400 requests before and after", fewest >= 400, fewest);
        let (requests, fresh) = (self.report.requests, self.report.fresh);
        self.report.promise("half of them on fresh connections", fresh * 2 >= requests, fresh);
        self.report.retries = facts::retries(&client).await?;
        Ok(())
    }

    /// Replaces every sidecar's certificate, one after the other.
    async fn rotate(&mut self, load: &mut Load) -> Result<()> {
        self.say("rotating every certificate");
        load.wait_for(self.volume.around).await?;
        let meshed = self.meshed();
        for pod in &meshed {
            let (old_serial, new_serial) = facts::rotate(pod).await?;
            if old_serial != new_serial && !new_serial.is_empty() {
                self.report.rotations.push(Rotation { pod: pod.key.name.clone(), old_serial, new_serial });
            }
            load.wait_for(self.volume.around).await?;
        }
        let (rotated, all) = (self.report.rotations.len(), meshed.len());
        self.report.promise(
            "every certificate was replaced",
            rotated == all,
            format_args!("{rotated} of {all}"),
        );
        Ok(())
    }

    /// Kills the control plane, watches the load go on, and starts it again.
    async fn restart_control_plane(&mut self, load: &mut Load) -> Result<()> {
        self.say("killing the control plane");
        load.wait_for(self.volume.around).await?;
        self.lab.control_plane.kill().await?;
        let before = load.requests().await?;
        load.wait_for(self.volume.around).await?;
        let during = load.requests().await? - before;
        self.report.promise(
            "traffic goes on without a control plane",
            during >= 50,
            format_args!("{during} requests"),
        );
        self.lab.control_plane.start(CONTROL_PLANE_LIMIT).await?;
        self.report.control_plane_restarts += 1;
        self.say("the control plane is back");
        load.wait_for(self.volume.around).await
    }

    /// Waits until the phase has as many requests as wanted.
    async fn fill(&self, load: &mut Load) -> Result<()> {
        let done = load.requests().await?;
        load.wait_for(self.volume.requests.saturating_sub(done)).await
    }

    /// Ends a phase of the load and adds it up.
    async fn finish(&mut self, load: &mut Load) -> Result<()> {
        let phase = load.stop().await?;
        self.report.requests += phase["requests"].as_u64().unwrap_or(0);
        self.report.fresh += phase["fresh"].as_u64().unwrap_or(0);
        self.report.failed_requests += phase["failed"].as_u64().unwrap_or(0);
        for (reason, count) in phase["failures"].as_object().into_iter().flatten() {
            let name = phase["name"].as_str().unwrap_or_default();
            *self.report.failures.entry(format!("{name}: {reason}")).or_default() +=
                count.as_u64().unwrap_or(0);
        }
        Ok(())
    }

    /// What the apps counted.
    async fn split(&self) -> Result<BTreeMap<String, u64>> {
        let mut split = BTreeMap::new();
        for (version, pod) in [("v1", "reviews-v1"), ("v2", "reviews-v2")] {
            split.insert(version.to_owned(), facts::app_requests(self.pod(pod)?).await?);
        }
        Ok(split)
    }

    /// Step 6, first half: plaintext under STRICT, PERMISSIVE and STRICT again, with the mesh's own traffic going on.
    async fn plaintext(&mut self) -> Result<()> {
        let (client, outsider) = (Arc::clone(self.pod("client")?), Arc::clone(self.pod("outsider")?));
        let url = format!("http://{}:9080/", self.pod("reviews-v1")?.place.ip);
        let mut load = Load::open(&client, REVIEWS_URL, self.volume.rate)?;
        load.start("policy").await?;
        let counted = facts::app_requests(self.pod("reviews-v1")?).await?;
        let first = facts::get(&outsider, &url, &["x-plain: 1"]).await?;
        self.scenario.set_mtls(false)?;
        let accepted = until("plaintext accepted under PERMISSIVE", EDIT_LIMIT, || async {
            let got = facts::get(&outsider, &url, &[]).await?;
            Ok((got.status == Some(200)).then_some(got.clone()).ok_or_else(|| got.describe()))
        })
        .await;
        self.report.permissive_accepted = accepted.is_ok();
        self.report.promise("plaintext is accepted under PERMISSIVE", accepted.is_ok(), describe(&accepted));
        self.scenario.set_mtls(true)?;
        let again = until("plaintext refused under STRICT again", EDIT_LIMIT, || async {
            let got = facts::get(&outsider, &url, &[]).await?;
            Ok(refused(&got).then_some(got.clone()).ok_or_else(|| got.describe()))
        })
        .await;
        self.finish(&mut load).await?;
        self.report.plaintext_refused = refused(&first) && again.is_ok();
        let seen = format!("{}; again: {}", first.describe(), describe(&again));
        self.report.promise("plaintext is refused under STRICT", self.report.plaintext_refused, seen);
        let meanwhile = facts::app_requests(self.pod("reviews-v1")?).await? - counted;
        self.report.promise("the mesh's own traffic went on meanwhile", meanwhile > 0, meanwhile);
        let failed = self.report.failed_requests;
        self.report.promise("no request failed", failed == 0, failed);
        Ok(())
    }

    /// Step 6, second half: a peer whose certificate is valid but not that of the service.
    async fn impostor(&mut self) -> Result<()> {
        let (client, rogue) = (Arc::clone(self.pod("client")?), Arc::clone(self.pod("rogue")?));
        // The same call succeeds when the peer is expected: what is refused later is the identity alone.
        self.edit_impostor("rogue").await?;
        self.until_known("outbound|9080||impostor.lab", "rogue").await?;
        let expected = impostor_answers(&client, 200, "the expected identity to be accepted").await;
        self.report.promise(
            "a peer with the expected identity is accepted",
            expected.is_ok(),
            describe(&expected),
        );
        self.remember_sidecar("rogue", CLIENT_ID, ROGUE_ID).await?;
        self.revoke(&client, &rogue).await?;
        self.edit_impostor("reviews").await?;
        let refusal = impostor_answers(&client, 503, "the wrong identity to be refused").await;
        let counted = facts::app_requests(&rogue).await?;
        let last = facts::get(&client, IMPOSTOR_URL, &[]).await?;
        let reached = facts::app_requests(&rogue).await? > counted;
        self.report.wrong_identity_refused =
            expected.is_ok() && refusal.is_ok() && last.status == Some(503) && !reached;
        let seen = format!("{}; reached the app: {reached}", last.describe());
        self.report.promise(
            "a peer with another identity is refused",
            self.report.wrong_identity_refused,
            seen,
        );
        Ok(())
    }

    /// The certificate that serves, on live connections too, is revoked at the control plane; then the same peer has a new one.
    async fn revoke(&mut self, client: &Pod, rogue: &Pod) -> Result<()> {
        let certs = facts::admin(rogue, "/certs").await?;
        let serial = certs.pointer("/certificates/0/cert_chain/0/serial_number").and_then(Value::as_str);
        let serial = serial.ok_or_else(|| LabError::process("rogue /certs", certs.to_string()))?;
        let list = self.lab.cluster.paths.control_state.join("revoked-serials");
        write_atomically(&list, format!("{serial} # {}\n", rogue.key).as_bytes())?;
        let refused = impostor_answers(client, 503, "a revoked certificate to be refused").await;
        self.report.promise("a revoked certificate is refused", refused.is_ok(), describe(&refused));
        facts::rotate(rogue).await?;
        let accepted = impostor_answers(client, 200, "a new certificate to be accepted").await;
        self.report.promise("a new one in its place is accepted", accepted.is_ok(), describe(&accepted));
        Ok(())
    }

    /// Waits until the client's sidecar knows `pod` as an endpoint of `cluster`.
    async fn until_known(&self, cluster: &str, pod: &str) -> Result<()> {
        let client = self.pod("client")?;
        let line = format!("{cluster}::{}:9080::health_flags::healthy", self.pod(pod)?.place.ip);
        until(&format!("the endpoint {pod} in the client's sidecar"), EDIT_LIMIT, || async {
            let known = facts::clusters(client).await?.contains(&line);
            Ok(known.then_some(()).ok_or_else(|| format!("no {line}")))
        })
        .await
    }

    async fn edit_impostor(&self, account: &str) -> Result<()> {
        self.scenario.write_impostor(self.pod("rogue")?.place.ip, account)?;
        self.lab.cluster.reload()?;
        self.lab.kubelet.refresh_hosts()
    }

    /// The same closed loop with and without the mesh.
    async fn latency(&mut self) -> Result<()> {
        let direct_url = format!("http://{}:9080/", self.pod("direct")?.place.ip);
        let (direct_p50, direct_p99) = self.measure("outsider", &direct_url).await?;
        let (mesh_p50, mesh_p99) = self.measure("client", REVIEWS_URL).await?;
        self.report.latency_us = Latency { direct_p50, direct_p99, mesh_p50, mesh_p99 };
        Ok(())
    }

    async fn measure(&self, pod: &str, url: &str) -> Result<(u64, u64)> {
        let pod = self.pod(pod)?;
        let requests = self.volume.latency.to_string();
        let seconds = self.volume.latency_seconds.to_string();
        let load = ["mesh-echo", "load", "--json", "--url", url, "--concurrency", "1"];
        let bounds = ["--requests", &requests, "--max-seconds", &seconds];
        let argv = [&load[..], &bounds[..]].concat();
        let output = pod.exec(pod.default_container(), &argv, Duration::from_secs(20)).await?;
        let report: Value = serde_json::from_str(output.stdout.trim()).map_err(|_| {
            LabError::process("mesh-echo load", format!("{}{}", output.stdout, output.stderr))
        })?;
        if report["failed"] != 0 {
            return Err(LabError::process(
                "mesh-echo load",
                format!("failed requests: {}", report["failures"]),
            ));
        }
        let latency = |percentile: &str| report["latency_us"][percentile].as_u64().unwrap_or(0);
        Ok((latency("p50"), latency("p99")))
    }

    /// Step 7: what the sidecars and the kernel know.
    async fn collect(&mut self) -> Result<()> {
        for pod in ["client", "reviews-v1", "reviews-v2"] {
            self.remember_sidecar(pod, CLIENT_ID, REVIEWS_ID).await?;
        }
        self.report.sidecars.sort_by(|one, other| one.pod.cmp(&other.pod));
        for pod in self.meshed() {
            let rules = facts::rules(&pod).await?;
            let packets: u64 = rules.iter().map(|rule| rule.packets).sum();
            self.report.promise(
                &format!("the kernel redirects in {}", pod.key.name),
                packets > 0,
                format_args!("{packets} packets in {} rules", rules.len()),
            );
            self.report.rules_packets += packets;
            self.report.rules.extend(rules.into_iter().map(|rule| (pod.key.name.clone(), rule)));
        }
        Ok(())
    }

    /// One sidecar's figures with a live session between the two identities.
    async fn remember_sidecar(&mut self, name: &str, client: &str, server: &str) -> Result<()> {
        let pod = Arc::clone(self.pod(name)?);
        let all = facts::sessions(&pod).await?;
        let found = all.iter().find(|session| session.client == client && session.server == server);
        let seen =
            all.iter().map(|session| format!("{} -> {} ({})", session.client, session.server, session.tls));
        let seen = seen.collect::<Vec<_>>().join("; ");
        let tls13 = found.is_some_and(|session| session.tls.starts_with("TLSv1.3"));
        self.report.promise(
            &format!("{name} has live TLS 1.3 sessions with the right identities"),
            tls13,
            found.map_or_else(|| format!("only [{seen}]"), |session| session.tls.clone()),
        );
        let unknown = Session { client: String::new(), server: String::new(), tls: String::from("none") };
        let session = found.cloned().unwrap_or(unknown);
        let facts = SidecarFacts {
            pod: name.to_owned(),
            ready_ms: facts::ready_ms(&pod).await?,
            rss_kib: facts::rss_kib(&pod, SIDECAR)?,
            client_id: session.client,
            server_id: session.server,
            tls: session.tls,
        };
        self.report.sidecars.push(facts);
        Ok(())
    }
}

/// Waits until a call of the impostor's service has that status.
async fn impostor_answers(client: &Pod, status: u64, what: &str) -> Result<Got> {
    until(what, EDIT_LIMIT, || async {
        let got = facts::get(client, IMPOSTOR_URL, &[]).await?;
        Ok((got.status == Some(status)).then_some(got.clone()).ok_or_else(|| got.describe()))
    })
    .await
}

/// Without an answer at all, as a TLS server treats plaintext.
fn refused(got: &Got) -> bool {
    got.status.is_none() && (got.reason.contains("reset") || got.reason.contains("closed"))
}

fn describe(outcome: &Result<Got>) -> String {
    match outcome {
        Ok(got) => got.status.map_or_else(|| got.reason.clone(), |status| format!("status {status}")),
        Err(error) => error.to_string(),
    }
}

fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let earlier = |version: &String| before.get(version).copied().unwrap_or(0);
    after.iter().map(|(version, count)| (version.clone(), count.saturating_sub(earlier(version)))).collect()
}

/// Looks until `look` finds something; its last reason is part of the error. A look that fails (a page that came too late
/// on a busy machine) is repeated like one that finds nothing.
async fn until<T, F>(what: &str, limit: Duration, look: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<Result<T, String>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let reason = match look().await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            let detail = format!(": {reason}");
            return Err(LabError::Timeout { what: what.to_owned(), seconds: limit.as_secs(), detail });
        }
        sleep(LOOK).await;
    }
}
