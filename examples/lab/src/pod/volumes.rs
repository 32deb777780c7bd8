//! Volumes of a pod, written below one directory per pod on memory that only the lab sees.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;

use super::environment::{Capacity, Data, field_value, resource_value};
use super::spec::{PodSpec, ResourceFieldRef, Volume, VolumeMount};
use crate::error::{During as _, LabError, Result};
use crate::sandbox::Bind;

/// What volumes are filled from.
pub(crate) struct Sources<'a> {
    /// `Pod namespace/name`, for errors.
    pub(crate) object: &'a str,
    pub(crate) pod: &'a Value,
    pub(crate) spec: &'a PodSpec,
    pub(crate) capacity: Capacity,
    pub(crate) data: Data<'a>,
    /// A token of the pod's service account for an audience and a number of seconds.
    pub(crate) token: &'a dyn Fn(&str, u64) -> Result<String>,
}

/// A file in a volume.
type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// Makes every volume of `spec` below `directory`; the paths by volume name.
pub(crate) fn make(
    sources: &Sources<'_>,
    spec: &PodSpec,
    directory: &Path,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut made = BTreeMap::new();
    for volume in &spec.volumes {
        let path = directory.join(&volume.name);
        let source = volume.source.iter().find(|(_, value)| !value.is_null());
        let path = match source.map(|(kind, value)| (kind.as_str(), value)) {
            Some(("hostPath", host)) => host_path(sources, volume, host)?,
            None | Some(("emptyDir", _)) => {
                make_directory(&path, 0o777, spec.security_context.fs_group)?;
                path
            }
            Some((kind, source)) => {
                let files = files(sources, volume, kind, source)?;
                make_directory(&path, 0o755, None)?;
                write_files(&path, &files)?;
                path
            }
        };
        made.insert(volume.name.clone(), path);
    }
    Ok(made)
}

/// Renews what expires in a volume of projected tokens: rewrites the files atomically.
pub(crate) fn refresh_tokens(sources: &Sources<'_>, spec: &PodSpec, directory: &Path) -> Result<()> {
    refresh(sources, spec, directory, &["projected"])
}

/// Brings volumes of ConfigMaps and Secrets up to date, as a kubelet does: what changed is replaced atomically, what is not
/// in the object any more goes. A container that mounts a `subPath` keeps what it had.
pub(crate) fn refresh_objects(sources: &Sources<'_>, spec: &PodSpec, directory: &Path) -> Result<()> {
    refresh(sources, spec, directory, &["configMap", "secret"])
}

fn refresh(sources: &Sources<'_>, spec: &PodSpec, directory: &Path, kinds: &[&str]) -> Result<()> {
    for volume in &spec.volumes {
        let source = volume.source.iter().find(|(_, value)| !value.is_null());
        let Some((kind, source)) = source.filter(|(kind, _)| kinds.contains(&kind.as_str())) else {
            continue;
        };
        let (path, files) = (directory.join(&volume.name), files(sources, volume, kind, source)?);
        write_files(&path, &files)?;
        for entry in fs::read_dir(&path).during(format!("list {}", path.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = files.keys().any(|file| Path::new(file).starts_with(&name));
            if !wanted && entry.path().is_file() {
                fs::remove_file(entry.path()).during(format!("remove {}", entry.path().display()))?;
            }
        }
    }
    Ok(())
}

/// The mounts of one container.
pub(crate) fn binds(
    object: &str,
    mounts: &[VolumeMount],
    volumes: &BTreeMap<String, PathBuf>,
) -> Result<Vec<Bind>> {
    let bad = |mount: &VolumeMount, message: &str| LabError::Object {
        object: object.to_owned(),
        field: format!("volumeMounts[{}]", mount.mount_path),
        message: message.to_owned(),
    };
    mounts
        .iter()
        .map(|mount| {
            let volume = volumes.get(&mount.name).ok_or_else(|| bad(mount, "no such volume"))?;
            if !mount.mount_path.starts_with('/') {
                return Err(bad(mount, "must be absolute"));
            }
            if Path::new(&mount.sub_path).components().any(|part| !matches!(part, Component::Normal(_))) {
                return Err(bad(mount, "subPath must stay in the volume"));
            }
            let source =
                if mount.sub_path.is_empty() { volume.clone() } else { volume.join(&mount.sub_path) };
            Ok(Bind { source, target: PathBuf::from(&mount.mount_path), read_only: mount.read_only })
        })
        .collect()
}

fn host_path(sources: &Sources<'_>, volume: &Volume, host: &Value) -> Result<PathBuf> {
    let path = host.get("path").and_then(Value::as_str).map(PathBuf::from);
    path.filter(|path| path.is_absolute() && path.exists())
        .ok_or_else(|| bad(sources, volume, "hostPath.path must be an existing absolute path"))
}

fn files(sources: &Sources<'_>, volume: &Volume, kind: &str, source: &Value) -> Result<Files> {
    let mode = source.get("defaultMode").and_then(Value::as_u64).map_or(0o644, |mode| mode as u32 & 0o777);
    match kind {
        "configMap" => from_data(sources, volume, "ConfigMap", source, source.get("name"), mode),
        "secret" => from_data(sources, volume, "Secret", source, source.get("secretName"), mode),
        "downwardAPI" => downward(sources, volume, source, mode),
        "projected" => {
            let mut files = Files::new();
            for part in source.get("sources").and_then(Value::as_array).into_iter().flatten() {
                for (kind, part) in part.as_object().into_iter().flatten() {
                    files.extend(match kind.as_str() {
                        "serviceAccountToken" => token(sources, volume, part)?,
                        "configMap" => from_data(sources, volume, "ConfigMap", part, part.get("name"), mode)?,
                        "secret" => from_data(sources, volume, "Secret", part, part.get("name"), mode)?,
                        "downwardAPI" => downward(sources, volume, part, mode)?,
                        other => {
                            return Err(bad(sources, volume, &format!("unknown projected source {other}")));
                        }
                    });
                }
            }
            Ok(files)
        }
        other => Err(bad(sources, volume, &format!("unknown volume type {other}"))),
    }
}

fn from_data(
    sources: &Sources<'_>,
    volume: &Volume,
    kind: &str,
    source: &Value,
    name: Option<&Value>,
    mode: u32,
) -> Result<Files> {
    let name = name.and_then(Value::as_str).unwrap_or_default();
    let Some(mut data) = (sources.data)(kind, name) else {
        return if source.get("optional").and_then(Value::as_bool) == Some(true) {
            Ok(Files::new())
        } else {
            Err(bad(sources, volume, &format!("{kind} {name} is not there")))
        };
    };
    let Some(items) = source.get("items").and_then(Value::as_array) else {
        return Ok(data.into_iter().map(|(key, value)| (key, (value, mode))).collect());
    };
    let mut files = Files::new();
    for item in items {
        let key = item.get("key").and_then(Value::as_str).unwrap_or_default();
        let path = item.get("path").and_then(Value::as_str).unwrap_or(key);
        let value = data
            .remove(key)
            .ok_or_else(|| bad(sources, volume, &format!("{kind} {name} has no key {key}")))?;
        files.insert(path.to_owned(), (value, mode));
    }
    Ok(files)
}

fn downward(sources: &Sources<'_>, volume: &Volume, source: &Value, mode: u32) -> Result<Files> {
    let mut files = Files::new();
    for item in source.get("items").and_then(Value::as_array).into_iter().flatten() {
        let (value, what) = match item.get("resourceFieldRef").filter(|wanted| !wanted.is_null()) {
            Some(wanted) => {
                let wanted = ResourceFieldRef::deserialize(wanted)
                    .map_err(|error| bad(sources, volume, &format!("resourceFieldRef: {error}")))?;
                // No container owns a volume: one has to be named.
                let value = resource_value(sources.spec, sources.capacity, None, &wanted);
                (value, format!("resource {}", wanted.resource))
            }
            None => {
                let field = item.pointer("/fieldRef/fieldPath").and_then(Value::as_str).unwrap_or_default();
                (field_value(sources.pod, field), format!("field {field}"))
            }
        };
        let value = value.ok_or_else(|| bad(sources, volume, &format!("{what} is not there")))?;
        let path = item.get("path").and_then(Value::as_str);
        let path = path.ok_or_else(|| bad(sources, volume, "an item of downwardAPI has no path"))?;
        files.insert(path.to_owned(), (value.into_bytes(), mode));
    }
    Ok(files)
}

fn token(sources: &Sources<'_>, volume: &Volume, source: &Value) -> Result<Files> {
    let audience = source.get("audience").and_then(Value::as_str).unwrap_or("https://kubernetes.default.svc");
    let seconds = source.get("expirationSeconds").and_then(Value::as_u64).unwrap_or(3600);
    let path = source
        .get("path")
        .and_then(Value::as_str)
        .ok_or_else(|| bad(sources, volume, "serviceAccountToken.path is missing"))?;
    Ok(Files::from([(path.to_owned(), ((sources.token)(audience, seconds)?.into_bytes(), 0o644))]))
}

fn write_files(directory: &Path, files: &Files) -> Result<()> {
    for (name, (content, mode)) in files {
        let relative = Path::new(name);
        if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(LabError::File {
                path: relative.to_owned(),
                message: String::from("leads out of the volume"),
            });
        }
        let path = directory.join(relative);
        // Whoever watches the file is not woken for nothing.
        if fs::read(&path).is_ok_and(|known| known == *content) {
            continue;
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).during(format!("create {}", parent.display()))?;
        }
        let temporary = path.with_file_name(format!("..{}", name.replace('/', "_")));
        fs::write(&temporary, content).during(format!("write {}", path.display()))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(*mode)).during("set a file's mode")?;
        fs::rename(&temporary, &path).during(format!("replace {}", path.display()))?;
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32, group: Option<u32>) -> Result<()> {
    fs::create_dir_all(path).during(format!("create {}", path.display()))?;
    if group.is_some() {
        chown(path, None, group).during("hand a volume to its group")?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).during("set a volume's mode")
}

fn bad(sources: &Sources<'_>, volume: &Volume, message: &str) -> LabError {
    LabError::Object {
        object: sources.object.to_owned(),
        field: format!("volumes[{}]", volume.name),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn make_all(volumes: Value, directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
        let root = |kind: &str, name: &str| {
            (kind == "ConfigMap" && name == "root")
                .then(|| BTreeMap::from([(String::from("root-cert.pem"), b"PEM".to_vec())]))
        };
        with_data(volumes, &root, |sources| make(sources, sources.spec, directory))
    }

    fn with_data<T>(volumes: Value, data: Data<'_>, run: impl FnOnce(&Sources<'_>) -> T) -> T {
        let pod = json!({
            "metadata": { "name": "a", "namespace": "n", "labels": { "app": "a" } },
            "spec": {
                "containers": [{ "name": "app", "resources": { "limits": { "memory": "3Mi" } } }],
                "volumes": volumes,
            },
        });
        let spec = PodSpec::parse("Pod n/a", &pod).unwrap();
        let sources = Sources {
            object: "Pod n/a",
            pod: &pod,
            spec: &spec,
            capacity: Capacity { cpus: 2, memory: 4096 },
            data,
            token: &|audience, seconds| Ok(format!("{audience}/{seconds}")),
        };
        run(&sources)
    }

    #[test]
    fn every_source_becomes_files() {
        let directory = tempfile::tempdir().unwrap();
        let made = make_all(
            json!([
                { "name": "nothing" },
                { "name": "memory", "emptyDir": { "medium": "Memory" } },
                { "name": "ca", "configMap": { "name": "root" } },
                { "name": "crl", "configMap": { "name": "none", "optional": true } },
                { "name": "info", "downwardAPI": { "items": [
                    { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                    { "path": "memory", "resourceFieldRef": {
                        "containerName": "app", "resource": "limits.memory", "divisor": "1Mi" } },
                    { "path": "cpu", "resourceFieldRef": {
                        "containerName": "app", "resource": "limits.cpu" } } ] } },
                { "name": "token", "projected": { "sources": [ { "serviceAccountToken": {
                    "path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43200 } } ] } },
            ]),
            directory.path(),
        )
        .unwrap();
        let read = |volume: &str, file: &str| fs::read_to_string(made[volume].join(file)).unwrap();
        assert_eq!(read("ca", "root-cert.pem"), "PEM");
        assert_eq!(read("info", "labels"), "app=\"a\"");
        assert_eq!((read("info", "memory").as_str(), read("info", "cpu").as_str()), ("3", "2"));
        assert_eq!(read("token", "istio-token"), "istio-ca/43200");
        assert!(made["nothing"].is_dir() && made["memory"].is_dir() && made["crl"].is_dir());
        let mode = fs::metadata(&made["memory"]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);
    }

    #[test]
    fn objects_that_change_change_their_volumes_and_no_other_file_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = json!([
            { "name": "crl", "configMap": { "name": "crl", "optional": true } },
            { "name": "key", "secret": { "secretName": "key" } },
        ]);
        let refreshed = |lists: &[(&str, &str)]| {
            let data = |kind: &str, name: &str| match (kind, name) {
                ("Secret", _) => Some(BTreeMap::from([(String::from("tls.key"), b"KEY".to_vec())])),
                _ if lists.is_empty() => None,
                _ => Some(
                    lists.iter().map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec())).collect(),
                ),
            };
            with_data(volumes.clone(), &data, |sources| {
                if !directory.path().join("crl").exists() {
                    make(sources, sources.spec, directory.path()).unwrap();
                }
                refresh_objects(sources, sources.spec, directory.path()).unwrap();
            });
            let mut names: Vec<_> = fs::read_dir(directory.path().join("crl"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let text = || fs::read_to_string(directory.path().join("crl/ca-crl.pem")).unwrap();
        assert!(refreshed(&[]).is_empty(), "an optional object that is not there");
        let inode = || {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata(directory.path().join("key/tls.key")).unwrap().ino()
        };
        let before = inode();
        assert_eq!(refreshed(&[("ca-crl.pem", "one"), ("other", "")]), ["ca-crl.pem", "other"]);
        assert_eq!(text(), "one");
        assert_eq!(refreshed(&[("ca-crl.pem", "two")]), ["ca-crl.pem"]);
        assert_eq!(text(), "two");
        assert!(refreshed(&[]).is_empty(), "withdrawn");
        assert_eq!(inode(), before, "the same content is not written again");
    }

    #[test]
    fn a_missing_source_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error =
            make_all(json!([{ "name": "ca", "configMap": { "name": "x" } }]), directory.path()).unwrap_err();
        assert_eq!(error.to_string(), "Pod n/a: volumes[ca]: ConfigMap x is not there");
        let error =
            make_all(json!([{ "name": "d", "nfs": { "server": "x" } }]), directory.path()).unwrap_err();
        assert_eq!(error.to_string(), "Pod n/a: volumes[d]: unknown volume type nfs");
        let nobody = json!([{ "name": "i", "downwardAPI": { "items": [
            { "path": "cpu", "resourceFieldRef": { "resource": "limits.cpu" } } ] } }]);
        let error = make_all(nobody, directory.path()).unwrap_err();
        assert_eq!(error.to_string(), "Pod n/a: volumes[i]: resource limits.cpu is not there");
    }

    #[test]
    fn mounts_stay_in_their_volume() {
        let volumes = BTreeMap::from([(String::from("v"), PathBuf::from("/volumes/v"))]);
        let mount = |path: &str, sub: &str| VolumeMount {
            name: String::from("v"),
            mount_path: path.to_owned(),
            sub_path: sub.to_owned(),
            read_only: true,
        };
        let bind = binds("Pod n/a", &[mount("/data", "a")], &volumes).unwrap();
        assert_eq!(bind[0].source, Path::new("/volumes/v/a"));
        assert!(binds("Pod n/a", &[mount("/data", "../a")], &volumes).is_err());
        assert!(binds("Pod n/a", &[mount("data", "")], &volumes).is_err());
    }
}
