//! A container's root: a tmpfs whose entries are symlinks into the machine's own file system, seen read-only under
//! `/.lab/host`. Directories become real ones exactly where something has to be mounted, so nothing is ever created on
//! the machine.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::c_path;
use crate::error::{During as _, LabError, Result};
use crate::sandbox::{BIN_DIR, LAB_DIR, PROGRAMS, Sandbox};

/// Top-level directories that the container gets anew.
const OWN: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", ".lab"];
/// The machine's mounts that programs run from; others (volumes, network shares, pseudo file systems) stay outside.
const HOST_MOUNTS: [&str; 11] =
    ["/bin", "/etc", "/home", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/root", "/sbin", "/usr"];
/// Device nodes that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Symlinks followed before a path counts as a loop, like the kernel's limit.
const MAX_LINKS: usize = 40;

/// Builds the root and moves into it.
pub(super) fn build(sandbox: &Sandbox) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).during("make mounts private")?;
    let root = Root { path: sandbox.root.clone() };
    mount(Some("tmpfs"), &root.path, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .during("mount the container's root")?;
    root.host_view()?;
    root.own_directories()?;
    root.programs(&sandbox.program)?;
    for bind in &sandbox.binds {
        root.bind(&bind.source, &bind.target, bind.read_only)?;
    }
    if sandbox.read_only_root {
        remount_read_only(&root.path)?;
    }
    chdir(&root.path).during("enter the new root")?;
    pivot_root(".", ".").during("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).during("leave the old root")?;
    chdir("/").during("enter /")
}

struct Root {
    path: PathBuf,
}

impl Root {
    /// Where an absolute path of the container lies at the moment.
    fn at(&self, inside: &Path) -> PathBuf {
        self.path.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    fn host_view(&self) -> Result<()> {
        let host = self.path.join(".lab/host");
        fs::create_dir_all(&host).during("create /.lab/host")?;
        bind_read_only(Path::new("/"), &host)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").during("read the mount table")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in
            points.filter(|point| HOST_MOUNTS.iter().any(|prefix| Path::new(point).starts_with(prefix)))
        {
            // Names with spaces are escaped in the table; such mounts are not needed to run programs.
            let (source, target) = (Path::new(point), host.join(point.trim_start_matches('/')));
            if source.exists() {
                bind_read_only(source, &target)?;
            }
        }
        for entry in fs::read_dir("/").during("list /")? {
            let name = entry.during("list /")?.file_name();
            if !OWN.iter().any(|own| name == *own) {
                let target = Path::new(LAB_DIR).join("host").join(&name);
                symlink(target, self.path.join(&name)).during(format!("link /{}", name.display()))?;
            }
        }
        Ok(())
    }

    fn own_directories(&self) -> Result<()> {
        for (name, mode) in [
            ("proc", 0o555),
            ("dev", 0o755),
            ("run", 0o755),
            ("tmp", 0o1777),
            ("sys", 0o555),
            ("dev/shm", 0o1777),
        ] {
            let path = self.path.join(name);
            fs::create_dir_all(&path).during(format!("create /{name}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).during(format!("chmod /{name}"))?;
        }
        let none: Option<&str> = None;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), &self.path.join("proc"), Some("proc"), flags, none).during("mount /proc")?;
        for device in DEVICES {
            let source = Path::new("/dev").join(device);
            if source.exists() {
                self.bind(&source, &source, false)?;
            }
        }
        for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            symlink(format!("/proc/self/fd{target}"), self.path.join("dev").join(link))
                .during(format!("link /dev/{link}"))?;
        }
        Ok(())
    }

    fn programs(&self, program: &Path) -> Result<()> {
        let bin = self.at(Path::new(BIN_DIR));
        fs::create_dir_all(&bin).during("create the program directory")?;
        self.bind(program, &Path::new(BIN_DIR).join("mesh-lab"), true)?;
        for name in PROGRAMS {
            symlink("mesh-lab", bin.join(name)).during(format!("link {name}"))?;
        }
        Ok(())
    }

    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        let directory = source.is_dir();
        let place = self.place(target, directory)?;
        let none: Option<&str> = None;
        mount(Some(source), &place, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).during(format!(
            "mount {} on {}",
            source.display(),
            target.display()
        ))?;
        if read_only { remount_read_only(&place) } else { Ok(()) }
    }

    /// Makes a mount point for `target`, turning links into real directories on the way.
    fn place(&self, target: &Path, directory: bool) -> Result<PathBuf> {
        let mut rest = components(target);
        let mut inside = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let next = inside.join(&name);
            let here = self.at(&next);
            if is_directory(&here) {
                inside = next;
                continue;
            }
            let last = rest.is_empty();
            if let Ok(link) = fs::read_link(self.host(&next)) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LabError::Usage(format!("{}: too many symlinks", target.display())));
                }
                // `inside` has no links any more, so the target can be resolved by its words.
                rest.extend(components(&inside.join(link)));
                inside = PathBuf::from("/");
                continue;
            }
            if fs::symlink_metadata(&here).is_ok_and(|meta| meta.is_symlink()) {
                fs::remove_file(&here).during(format!("replace {}", next.display()))?;
            }
            if last && !directory {
                if !here.exists() {
                    fs::write(&here, "").during(format!("create {}", next.display()))?;
                }
                return Ok(here);
            }
            self.materialise(&next, &here, last)?;
            inside = next;
        }
        Ok(self.at(&inside))
    }

    /// The machine's own entry for a path of the container.
    fn host(&self, inside: &Path) -> PathBuf {
        self.path.join(".lab/host").join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A real directory, with links to what the machine has there unless something is mounted over it anyway.
    fn materialise(&self, inside: &Path, here: &Path, covered: bool) -> Result<()> {
        fs::create_dir(here).during(format!("create {}", inside.display()))?;
        let top_level_own = OWN.iter().any(|own| inside.starts_with(Path::new("/").join(own)));
        if covered || top_level_own {
            return Ok(());
        }
        let Ok(entries) = fs::read_dir(self.host(inside)) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let target =
                Path::new(LAB_DIR).join("host").join(inside.strip_prefix("/").unwrap_or(inside)).join(&name);
            symlink(target, here.join(&name)).during(format!("link {}", inside.join(&name).display()))?;
        }
        Ok(())
    }
}

/// The components, last first, so that they can be popped in order; `..` stops at the root as in the kernel.
fn components(path: &Path) -> Vec<OsString> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names.reverse();
    names
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn bind_read_only(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)
        .during(format!("show {} in the container", source.display()))?;
    remount_read_only(target)
}

fn remount_read_only(target: &Path) -> Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, c_path(target)?.as_c_str(), none, flags, none)
        .during(format!("make {} read-only", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_come_last_first_and_never_lead_out() {
        assert_eq!(components(Path::new("/a/./b/../c")), ["c", "a"]);
        assert_eq!(components(Path::new("/../../a")), ["a"]);
    }

    #[test]
    fn a_mount_point_replaces_links_on_its_way_only() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root { path: directory.path().join("root") };
        for path in [".lab/host/etc/ssl", ".lab/host/usr/lib", ".lab/host/srv", "run"] {
            fs::create_dir_all(root.path.join(path)).unwrap();
        }
        fs::write(root.path.join(".lab/host/etc/hosts"), "machine").unwrap();
        symlink("../run", root.path.join(".lab/host/srv/run")).unwrap();
        for name in ["etc", "usr", "srv"] {
            symlink(format!("/.lab/host/{name}"), root.path.join(name)).unwrap();
        }
        let hosts = root.place(Path::new("/etc/hosts"), false).unwrap();
        assert_eq!(fs::read_to_string(hosts).unwrap(), "", "the machine's file must not be touched");
        assert_eq!(fs::read_link(root.path.join("etc/ssl")).unwrap(), Path::new("/.lab/host/etc/ssl"));
        root.place(Path::new("/etc/istio/pod"), true).unwrap();
        assert!(is_directory(&root.path.join("etc/istio/pod")));
        assert!(root.path.join("usr").is_symlink(), "not on the way");
        // A link on the machine is followed inside the container.
        let place = root.place(Path::new("/srv/run/secrets"), true).unwrap();
        assert_eq!(place, root.path.join("run/secrets"));
        assert_eq!(fs::read_to_string(root.path.join(".lab/host/etc/hosts")).unwrap(), "machine");
    }
}
