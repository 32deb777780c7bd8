//! One folder per running lab, locked for as long as the lab lives; what a crashed lab left is removed by the next one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::{During as _, LabError, Result};

/// A lab's folder; holding the value holds the lock.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// The directory that holds the folders of all labs of this user.
pub(crate) fn runtime_dir() -> PathBuf {
    std::env::var_os("MESH_LAB_DIR").map_or_else(|| PathBuf::from("/run/mesh-lab"), PathBuf::from)
}

impl StateDir {
    /// Makes a folder with a fresh name and locks it, after removing the folders of dead labs.
    pub(crate) fn create(runtime: &Path) -> Result<Self> {
        private_dir(runtime)?;
        // Between making a folder and locking it nobody may clean; the guard is released on return.
        let _guard = guard(runtime)?;
        clean(runtime)?;
        let pid = std::process::id();
        let path = (0_u32..)
            .map(|number| runtime.join(format!("lab-{pid}-{number}")))
            .find(|path| !path.exists())
            .ok_or_else(|| LabError::Usage(String::from("no free name for a lab")))?;
        private_dir(&path)?;
        Self::lock(path)
    }

    /// Shares the lock of a folder that the parent process made.
    pub(crate) fn join(path: PathBuf) -> Result<Self> {
        Self::lock(path)
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let lock = open_lock(&path.join("lock"))?;
        lock.lock_shared().during(format!("lock {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder: the orderly end. With it goes what a killed lab left that was still dying at the beginning.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.path).during(format!("remove {}", self.path.display()))?;
        let Some(runtime) = self.path.parent() else { return Ok(()) };
        let _guard = guard(runtime)?;
        clean(runtime)
    }
}

/// Holds off everybody else who makes or cleans folders, until the value is dropped.
fn guard(runtime: &Path) -> Result<File> {
    let guard = open_lock(&runtime.join("lock"))?;
    guard.lock().during("lock the runtime directory")?;
    Ok(guard)
}

/// Removes the folders of dead labs.
fn clean(runtime: &Path) -> Result<()> {
    for dead in folders(runtime)?.into_iter().filter(|path| !is_locked(path)) {
        fs::remove_dir_all(&dead).during(format!("remove what a dead lab left in {}", dead.display()))?;
    }
    Ok(())
}

/// Folders of labs that live now.
pub(crate) fn live_labs(runtime: &Path) -> Result<Vec<PathBuf>> {
    Ok(folders(runtime)?.into_iter().filter(|path| is_locked(path)).collect())
}

/// The one live lab, or the one named `wanted`.
pub(crate) fn find_lab(runtime: &Path, wanted: Option<&str>) -> Result<PathBuf> {
    let all = live_labs(runtime)?;
    let mut labs = all.clone();
    if let Some(wanted) = wanted {
        labs.retain(|path| path.file_name().is_some_and(|name| name == wanted));
    }
    let names = |labs: &[PathBuf]| -> String {
        let names = labs.iter().filter_map(|path| path.file_name()?.to_str());
        names.collect::<Vec<_>>().join(", ")
    };
    match (labs.as_slice(), wanted) {
        ([lab], _) => Ok(lab.clone()),
        ([], Some(wanted)) if !all.is_empty() => {
            Err(LabError::Usage(format!("no lab {wanted} is running; there is {}", names(&all))))
        }
        ([], _) => {
            Err(LabError::Usage(String::from("no lab is running; start one with `mesh-lab up -f DIR`")))
        }
        _ => Err(LabError::Usage(format!("several labs are running; name one with --lab: {}", names(&labs)))),
    }
}

/// Writes a file so that readers see the old or the new content, never a part.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    // A leading dot: directory watchers skip it.
    let temporary = path.with_file_name(format!(".{}", name.display()));
    fs::write(&temporary, content).during(format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).during(format!("replace {}", path.display()))
}

/// Creates a directory that only its owner can enter; an existing one is fine.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).during(format!("create {}", path.display()))
}

fn open_lock(path: &Path) -> Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .during(format!("open {}", path.display()))?;
    file.flush().during("flush")?;
    Ok(file)
}

fn folders(runtime: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(runtime) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).during(format!("list {}", runtime.display())),
    };
    // Only what a lab made: the directory may be anybody's choice, and dead folders are removed with all they hold.
    let ours = |entry: &fs::DirEntry| {
        entry.file_type().is_ok_and(|kind| kind.is_dir())
            && entry.file_name().to_str().is_some_and(is_lab_name)
    };
    let mut found: Vec<PathBuf> = entries.flatten().filter(ours).map(|entry| entry.path()).collect();
    found.sort();
    Ok(found)
}

/// `lab-<pid>-<number>`, as [`StateDir::create`] names folders.
fn is_lab_name(name: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.strip_prefix("lab-").and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(pid, count)| number(pid) && number(count))
}

fn is_locked(folder: &Path) -> bool {
    match File::open(folder.join("lock")) {
        Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_labs_are_cleaned() {
        let runtime = tempfile::tempdir().unwrap();
        let one = StateDir::create(runtime.path()).unwrap();
        let crashed = StateDir::create(runtime.path()).unwrap();
        let crashed_path = crashed.path().to_owned();
        fs::write(crashed_path.join("left"), "behind").unwrap();
        assert_eq!(live_labs(runtime.path()).unwrap().len(), 2);
        assert!(find_lab(runtime.path(), None).is_err(), "two labs are running");
        drop(crashed);
        assert!(crashed_path.exists());
        let two = StateDir::create(runtime.path()).unwrap();
        assert!(one.path().exists() && two.path().exists());
        assert!(two.path() == crashed_path || !crashed_path.exists());
        assert!(!two.path().join("left").exists());
        let kept = one.path().to_owned();
        let shared = StateDir::join(kept.clone()).unwrap();
        drop(one);
        assert!(is_locked(&kept), "the other process still holds it");
        shared.remove().unwrap();
        two.remove().unwrap();
        assert!(live_labs(runtime.path()).unwrap().is_empty());
    }

    #[test]
    fn what_no_lab_made_is_never_cleaned() {
        let runtime = tempfile::tempdir().unwrap();
        let others = ["documents", "lab-", "lab-1", "lab-1-x", "lab-a-0", "lab-1-2-3", "xlab-1-0"];
        for name in others {
            fs::create_dir(runtime.path().join(name)).unwrap();
        }
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), runtime.path().join("lab-7-0")).unwrap();
        fs::create_dir(runtime.path().join("lab-9-0")).unwrap();
        let lab = StateDir::create(runtime.path()).unwrap();
        for name in others {
            assert!(runtime.path().join(name).exists(), "{name}");
        }
        assert!(elsewhere.path().exists() && runtime.path().join("lab-7-0").is_symlink());
        assert!(!runtime.path().join("lab-9-0").exists(), "a dead lab's, cut short before it was locked");
        lab.remove().unwrap();
    }

    #[test]
    fn one_that_was_still_dying_is_cleaned_at_the_end() {
        let runtime = tempfile::tempdir().unwrap();
        let dying = StateDir::create(runtime.path()).unwrap();
        let lab = StateDir::create(runtime.path()).unwrap();
        let left = dying.path().to_owned();
        drop(dying);
        assert!(left.exists());
        lab.remove().unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn labs_are_told_apart_by_name() {
        let runtime = tempfile::tempdir().unwrap();
        let missing = find_lab(runtime.path(), Some("lab-1-0")).unwrap_err().to_string();
        assert!(missing.contains("no lab is running"), "{missing}");
        let one = StateDir::create(runtime.path()).unwrap();
        let two = StateDir::create(runtime.path()).unwrap();
        let name = |lab: &StateDir| lab.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(find_lab(runtime.path(), Some(&name(&two))).unwrap(), two.path());
        let several = find_lab(runtime.path(), None).unwrap_err().to_string();
        assert!(several.contains(&name(&one)) && several.contains(&name(&two)), "{several}");
        let wrong = find_lab(runtime.path(), Some("lab-1-0")).unwrap_err().to_string();
        assert!(wrong.contains("no lab lab-1-0 is running; there is lab-"), "{wrong}");
        one.remove().unwrap();
        two.remove().unwrap();
    }

    #[test]
    fn replacing_a_file_leaves_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
