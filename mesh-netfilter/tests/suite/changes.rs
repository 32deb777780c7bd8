//! Rules that change under traffic, and changes that are cut off: what was captured is never let through.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use libtest_mimic::Trial;
use mesh_netfilter::backend::{Backend, Iptables, Kind, Nft, Variant};
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::{Interception, Mode, Netlink, Ruleset};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::backends::is_here;
use crate::netns::Space;
use crate::pod::{Outcome, Pod, captured_connection, captured_neighbour};
use crate::strategies::{draw, runner};
use crate::{peers_required, trial};

/// The environment variable that makes this program a child that applies rules: `backend number lock`.
pub(crate) const JOB: &str = "MESH_NETFILTER_SUITE_JOB";
/// The number of the intent for both families.
pub(crate) const DUAL: u32 = u32::MAX;
/// Changes that are cut off, for every way of writing rules, in that many pods at once.
const KILLS: u32 = 200;
const PODS: u32 = 4;
/// How long nobody watches between two connections of a watcher.
const PACE: Duration = Duration::from_millis(2);

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let kinds = [
        (Kind::Netlink, 300),
        (Kind::Nft, 60),
        (Kind::Iptables(Variant::Nft), 30),
        (Kind::Iptables(Variant::Legacy), 30),
    ];
    let mut trials = Vec::new();
    for (kind, swaps) in kinds {
        let ignored = !(peers_required() || possible && is_here(kind));
        let killed = trial(format!("change::{kind}::killed_at_any_moment"), move || all_killed(kind));
        let stormed = trial(format!("change::{kind}::nothing_slips_through"), move || stormed(kind, swaps));
        trials.extend([killed.with_ignored_flag(ignored), stormed.with_ignored_flag(ignored)]);
    }
    trials
}

/// Three intents that all capture the same, by rules in different tables; and one for both families, for [`child`] only.
fn intent(number: u32) -> Interception {
    match number % 3 {
        _ if number == DUAL => Interception { ipv6: true, ..Interception::default() },
        0 => Interception::default(),
        1 => Interception {
            drop_invalid: true,
            dns: mesh_netfilter::Dns::All { port: 15053 },
            outbound_exclude_ports: vec![3306.into()],
            ..Interception::default()
        },
        _ => Interception { mode: Mode::TPROXY, ..Interception::default() },
    }
}

fn ruleset(number: u32) -> Ruleset {
    Ruleset::from(&intent(number))
}

pub(crate) fn open(kind: Kind, lock: &str) -> Result<Box<dyn Backend>, String> {
    Ok(match kind {
        Kind::Netlink => Box::new(Netlink::open().map_err(|error| error.to_string())?),
        Kind::Nft => Box::new(Nft),
        // The system's own.
        Kind::Iptables(variant) if lock == "-" => Box::new(Iptables::new(variant)),
        Kind::Iptables(variant) => Box::new(Iptables::new(variant).lock_file(lock.into())),
    })
}

/// What the child does.
pub(crate) fn child(job: &str) -> ExitCode {
    let words: Vec<&str> = job.split(' ').collect();
    let [kind, number, lock] = words[..] else { return ExitCode::from(2) };
    let (Ok(kind), Ok(number)) = (kind.parse::<Kind>(), number.parse()) else { return ExitCode::from(2) };
    match open(kind, lock)
        .and_then(|mut backend| backend.apply(&ruleset(number)).map_err(|error| error.to_string()))
    {
        Ok(applied) => {
            println!("{} changes", applied.changes);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A pod with rules, and people who connect all the time.
struct Scene {
    pod: Pod,
    kind: Kind,
    lock: String,
    watchers: Vec<Watcher>,
}

/// Connects again and again until told to stop; ends early when a connection was let through.
struct Watcher {
    stop: Sender<()>,
    thread: JoinHandle<Result<u32, String>>,
}

impl Watcher {
    fn new(space: &Space, connect: fn() -> Outcome, port: u16) -> Self {
        let (stop, stopped) = channel::<()>();
        // A thread belongs to the namespace of the one that starts it.
        let thread = space.run(move || {
            std::thread::spawn(move || {
                let mut captured = 0;
                while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                    captured += u32::from(is_captured(connect(), port)?);
                }
                Ok(captured)
            })
        });
        Self { stop, thread }
    }
}

/// Whether it was captured or dropped, which is allowed while tables change; an error when it was let through.
fn is_captured(outcome: Outcome, port: u16) -> Result<bool, String> {
    match outcome {
        Outcome::Port(arrived) if arrived == port => Ok(true),
        Outcome::Silence => Ok(false),
        other => Err(format!("a connection that belongs to port {port} ended as {other:?}")),
    }
}

impl Scene {
    fn new(kind: Kind, name: &str) -> Result<Self, String> {
        let pod = Pod::new()?;
        pod.serve(&Interception::default())?;
        let routes = needs(&intent(2));
        pod.inside
            .run(move || Routing::open().and_then(|mut routing| routing.apply(&routes)))
            .map_err(|error| error.to_string())?;
        let file = format!("mesh-netfilter-{}-{kind}-{name}.lock", std::process::id());
        let lock = std::env::temp_dir().join(file).to_string_lossy().into_owned();
        let mut scene = Self { pod, kind, lock, watchers: Vec::new() };
        scene.apply(0)?;
        scene.watchers.push(Watcher::new(&scene.pod.inside, captured_connection, 15001));
        scene.watchers.push(Watcher::new(&scene.pod.outside, captured_neighbour, 15006));
        Ok(scene)
    }

    fn apply(&self, number: u32) -> Result<(), String> {
        let (kind, lock) = (self.kind, self.lock.clone());
        self.pod.inside.run(move || {
            let mut backend = open(kind, &lock)?;
            backend.apply(&ruleset(number)).map(drop).map_err(|error| error.to_string())
        })
    }

    /// Whether these rules are there.
    fn holds(&self, number: u32) -> Result<bool, String> {
        let (kind, lock) = (self.kind, self.lock.clone());
        self.pod.inside.run(move || {
            let mut backend = open(kind, &lock)?;
            backend.plan(&ruleset(number)).map(|plan| plan.is_empty()).map_err(|error| error.to_string())
        })
    }

    /// Whether connections of both directions are captured now.
    fn captures(&self) -> Result<bool, String> {
        let out = self.pod.inside.run(captured_connection);
        let inbound = self.pod.outside.run(captured_neighbour);
        Ok(is_captured(out, 15001)? && is_captured(inbound, 15006)?)
    }

    /// Starts a program that applies rules; what it says comes by the stream.
    fn start(&self, number: u32) -> Result<(Child, UnixStream), String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let job = format!("{} {number} {}", self.kind, self.lock);
        self.pod.inside.run(move || {
            let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
            let mut command = Command::new(program);
            command.env(JOB, job).stdout(OwnedFd::from(theirs)).stderr(Stdio::null()).process_group(0);
            Ok((command.spawn().map_err(|error| error.to_string())?, ours))
        })
    }

    /// How long an apply takes here at least, until it has said what it did, when nobody cuts it off.
    fn duration(&self) -> Result<Duration, String> {
        let mut shortest = Duration::MAX;
        for number in 1..=6 {
            let (mut child, mut stream) = self.start(number)?;
            let (said, took) = timed(|| stream.read(&mut [0; 64]));
            said.map_err(|error| error.to_string())?;
            let status = child.wait().map_err(|error| error.to_string())?;
            if !status.success() {
                return Err(format!("an apply that nobody cut off ended with {status}"));
            }
            shortest = shortest.min(took);
        }
        Ok(shortest)
    }

    /// Nobody was let through; how many connections were captured meanwhile.
    fn end(self) -> Result<u32, String> {
        let mut captured = 0;
        for Watcher { stop, thread } in self.watchers {
            drop(stop);
            captured += thread.join().map_err(|_| "a watcher panicked".to_owned())??;
        }
        let _ = std::fs::remove_file(&self.lock);
        if captured > 0 { Ok(captured) } else { Err("no connection was made".to_owned()) }
    }
}

/// Runs something; how long it took.
#[expect(clippy::disallowed_types, reason = "another program takes the wall clock's time")]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let begin = std::time::Instant::now();
    let done = run();
    (done, begin.elapsed())
}

/// What one pod went through.
#[derive(Debug, Default)]
struct Killed {
    /// Programs that had not ended by themselves.
    cut_off: u32,
    /// Changes that were not complete when their program was killed.
    unfinished: u32,
    connections: u32,
}

fn all_killed(kind: Kind) -> Result<(), String> {
    let pods: Vec<_> =
        (0..PODS).map(|number| std::thread::spawn(move || killed(kind, number, KILLS / PODS))).collect();
    let mut total = Killed::default();
    for pod in pods {
        let one = pod.join().map_err(|_| "a pod's thread panicked".to_owned())??;
        total.cut_off += one.cut_off;
        total.unfinished += one.unfinished;
        total.connections += one.connections;
    }
    let Killed { cut_off, unfinished, connections } = total;
    println!(
        "{kind}: {KILLS} kills, {cut_off} before the program had ended, {unfinished} before the change was complete; {connections} connections meanwhile, none let through"
    );
    // Otherwise the moments were chosen badly.
    if cut_off < KILLS / 2 || unfinished < KILLS / 8 {
        return Err(format!("too few were cut off: {total:?}"));
    }
    Ok(())
}

fn killed(kind: Kind, pod: u32, kills: u32) -> Result<Killed, String> {
    let scene = Scene::new(kind, &format!("killed-{pod}"))?;
    let mut runner = runner(u64::from(pod));
    let duration = scene.duration()?;
    // How long a program gets at most. It follows what came of it, so that on a quick machine and on a busy one about
    // half of the changes are cut off in the middle.
    let mut most = duration;
    let mut total = Killed::default();
    for number in 1..=kills {
        let share = draw(&(0_u32..1000), &mut runner);
        // Once in four only the program itself, not what it has started: that goes on alone.
        let alone = draw(&(0_u32..4), &mut runner) == 0;
        let (mut child, mut stream) = scene.start(number)?;
        // Until then, or until it has said what it did. A socket's own timeout is too coarse: several milliseconds.
        let (tell, said) = channel();
        std::thread::spawn(move || tell.send(stream.read(&mut [0; 64])));
        let _ = said.recv_timeout(most * share / 1000);
        let id = Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?);
        let _ = if alone { kill(id, Signal::SIGKILL) } else { killpg(id, Signal::SIGKILL) };
        let status = child.wait().map_err(|error| error.to_string())?;
        total.cut_off += u32::from(status.code().is_none());
        let unfinished = !scene.holds(number)?;
        total.unfinished += u32::from(unfinished);
        most = if unfinished { (most * 11 / 10).min(duration * 4) } else { most * 9 / 10 };
        converges(&scene, number)?;
    }
    total.connections = scene.end()?;
    Ok(total)
}

/// The next apply makes it right. One that was orphaned may still write; then it is done again.
fn converges(scene: &Scene, number: u32) -> Result<(), String> {
    for _ in 0..20 {
        scene.apply(number)?;
        if scene.holds(number)? && scene.captures()? {
            return Ok(());
        }
    }
    Err("it does not converge".to_owned())
}

fn stormed(kind: Kind, swaps: u32) -> Result<(), String> {
    let scene = Scene::new(kind, "stormed")?;
    for number in 1..=swaps {
        scene.apply(number)?;
    }
    let connections = scene.end()?;
    println!("{kind}: {swaps} replacements, {connections} connections meanwhile, none let through");
    Ok(())
}
