//! Serial numbers that an operator revoked: a file beside the CA, one hexadecimal number per line, `#` begins a comment.
//!
//! The certificates are refused from the next look on, and connections that stand on them are closed. A number that is
//! taken out of the file stays revoked until the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::ca::Ca;

use super::ServeError;

/// The file's name within the state directory.
pub(super) const FILE: &str = "revoked-serials";
/// A file that is longer is not read: at 20 bytes a line these are 50,000 certificates.
const MAX_BYTES: usize = 1 << 20;

/// What a text names, and the lines that name nothing: line number and content.
fn parse(text: &str) -> (Vec<&str>, Vec<(usize, &str)>) {
    let lines = text.lines().enumerate().map(|(index, line)| {
        let content = line.split_once('#').map_or(line, |(before, _)| before).trim();
        (index + 1, content)
    });
    let (good, bad): (Vec<_>, Vec<_>) = lines
        .filter(|(_, content)| !content.is_empty())
        .partition(|(_, content)| content.bytes().all(|b| b.is_ascii_hexdigit()));
    (good.into_iter().map(|(_, serial)| serial).collect(), bad)
}

/// The file's text; empty where there is none.
fn read(path: &Path) -> io::Result<String> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        outcome => outcome?,
    };
    if text.len() > MAX_BYTES {
        return Err(io::Error::other(format!("{} bytes; at most {MAX_BYTES} are read", text.len())));
    }
    Ok(text)
}

/// Revokes what `text` names; lines that are no serial number are reported and passed over.
fn revoke(ca: &Ca, path: &Path, text: &str) {
    let (serials, bad) = parse(text);
    for (line, content) in bad {
        tracing::error!(file = %path.display(), line, content, "not a hexadecimal serial number, passed over");
    }
    if serials.is_empty() {
        return;
    }
    match ca.revoke(&serials) {
        Ok(()) => tracing::info!(file = %path.display(), count = serials.len(), "certificates revoked"),
        Err(error) => tracing::error!(file = %path.display(), %error, "nothing of the file is revoked"),
    }
}

/// What was last read of the file.
#[derive(Debug)]
pub(super) struct Follower {
    ca: Arc<Ca>,
    path: PathBuf,
    seen: String,
    failed: bool,
}

impl Follower {
    /// Revokes what the file names.
    ///
    /// # Errors
    /// A file that is there and cannot be read: without it nobody knows whom to refuse.
    pub(super) fn start(ca: Arc<Ca>, path: PathBuf) -> Result<Self, ServeError> {
        let seen = read(&path).map_err(|source| ServeError::File { path: path.clone(), source })?;
        revoke(&ca, &path, &seen);
        Ok(Self { ca, path, seen, failed: false })
    }

    /// Looks at the file every `interval`, for ever.
    pub(super) async fn follow(mut self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            self.look();
        }
    }

    fn look(&mut self) {
        match read(&self.path) {
            Ok(text) => {
                self.failed = false;
                if text != self.seen {
                    revoke(&self.ca, &self.path, &text);
                    self.seen = text;
                }
            }
            Err(error) if !self.failed => {
                tracing::error!(file = %self.path.display(), %error, "cannot be read; what was revoked stays so");
                self.failed = true;
            }
            // Said already.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn comments_and_blank_lines_are_nothing_and_other_text_is_reported_with_its_line() {
        let text = "# stolen\n0a1B # laptop\n\n  ff  \nzz\n12 34\n";
        assert_eq!(parse(text), (vec!["0a1B", "ff"], vec![(5, "zz"), (6, "12 34")]));
    }

    proptest::proptest! {
        #[test]
        fn every_line_is_a_serial_a_fault_or_nothing(text in "[0-9a-f# g\n]{0,200}") {
            let (good, bad) = parse(&text);
            let said = text.lines().filter(|l| !l.split('#').next().unwrap_or_default().trim().is_empty());
            proptest::prop_assert_eq!(good.len() + bad.len(), said.count());
        }
    }
}
