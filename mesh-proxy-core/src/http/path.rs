//! Paths: normalisation and rewriting.

use std::borrow::Cow;

use http::{Uri, request, uri::PathAndQuery};

use crate::config::{EscapedSlashes, PathMatch, PathNormalization, PathRewrite, RouteMatch};

/// What normalisation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Normalized {
    /// Go on; the head may have changed.
    Done,
    /// 400.
    Rejected,
    /// Redirect to the (changed) path.
    Redirect,
}

/// Normalises the path of a request in place.
pub(crate) fn normalize(head: &mut request::Parts, how: PathNormalization) -> Normalized {
    if !how.normalize && !how.merge_slashes && how.escaped_slashes == EscapedSlashes::Keep {
        return Normalized::Done;
    }
    let path = head.uri.path();
    if is_plain(path) {
        return Normalized::Done;
    }
    let mut outcome = Normalized::Done;
    let mut new = Cow::Borrowed(path);
    if how.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(&new) {
        match how.escaped_slashes {
            EscapedSlashes::Reject => return Normalized::Rejected,
            EscapedSlashes::UnescapeAndRedirect => outcome = Normalized::Redirect,
            _ => {}
        }
        new =
            Cow::Owned(new.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\"));
    }
    if how.normalize {
        match rfc3986(&new) {
            Some(normal) => new = Cow::Owned(normal),
            None => return Normalized::Rejected,
        }
    }
    if how.merge_slashes && new.contains("//") {
        let mut merged = String::with_capacity(new.len());
        for c in new.chars() {
            if c != '/' || !merged.ends_with('/') {
                merged.push(c);
            }
        }
        new = Cow::Owned(merged);
    }
    if new == path {
        return Normalized::Done;
    }
    let target = with_query(&new, head.uri.query());
    if set_path(&mut head.uri, &target) { outcome } else { Normalized::Rejected }
}

/// Nothing in it could change: no dots after slashes, escapes, backslashes or double slashes.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    !bytes.iter().enumerate().any(|(i, b)| match b {
        b'%' | b'\\' => true,
        b'.' | b'/' => i > 0 && bytes[i - 1] == b'/',
        _ => false,
    })
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|w| {
        w[0] == b'%'
            && (w[1] == b'2' && matches!(w[2], b'f' | b'F') || w[1] == b'5' && matches!(w[2], b'c' | b'C'))
    })
}

/// Backslashes to slashes, unreserved escapes decoded, dot segments removed (RFC 3986, 5.2.4, 6.2.2).
/// `None` when the path climbs above its root or has a broken escape.
fn rfc3986(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => decoded.push(b'/'),
            b'%' => {
                let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
                let value = (digit(i + 1)? * 16 + digit(i + 2)?) as u8;
                if value == 0 {
                    return None;
                }
                if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') {
                    decoded.push(value);
                } else {
                    decoded.extend([
                        b'%',
                        bytes[i + 1].to_ascii_uppercase(),
                        bytes[i + 2].to_ascii_uppercase(),
                    ]);
                }
                i += 2;
            }
            other => decoded.push(other),
        }
        i += 1;
    }
    let decoded = String::from_utf8(decoded).ok()?;
    let mut segments: Vec<&str> = Vec::new();
    let mut all = decoded.split('/').skip(1).peekable();
    while let Some(segment) = all.next() {
        let last = all.peek().is_none();
        match segment {
            "." if last => segments.push(""),
            "." => {}
            ".." => {
                segments.pop()?;
                if last {
                    segments.push("");
                }
            }
            other => segments.push(other),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Replaces path and query; false when the result is not a valid target.
pub(crate) fn set_path(uri: &mut Uri, target: &str) -> bool {
    let Ok(target) = PathAndQuery::try_from(target) else { return false };
    let mut parts = std::mem::take(uri).into_parts();
    if parts.authority.is_none() {
        parts.scheme = None;
    }
    parts.path_and_query = Some(target);
    match Uri::from_parts(parts) {
        Ok(new) => {
            *uri = new;
            true
        }
        Err(_) => false,
    }
}

/// The path and query after a route's rewrite; `None` when nothing changes.
pub(crate) fn rewrite(uri: &Uri, matches: &RouteMatch, rewrite: &PathRewrite) -> Option<String> {
    let path = uri.path();
    let new = match rewrite {
        PathRewrite::Prefix(replacement) => {
            let matched = match &matches.path {
                PathMatch::Prefix(p) | PathMatch::PathSeparatedPrefix(p) => p.len(),
                _ => path.len(),
            };
            format!("{replacement}{}", path.get(matched..).unwrap_or(""))
        }
        PathRewrite::Regex { pattern, substitution } => {
            let regex = pattern.replacer().ok()?;
            // `\1` is RE2's form; `regex` wants `${1}`.
            let mut template = String::with_capacity(substitution.len());
            let mut chars = substitution.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\\' => match chars.next() {
                        Some(d) if d.is_ascii_digit() => template.extend(["${", &d.to_string(), "}"]),
                        Some(other) => template.push(other),
                        None => {}
                    },
                    '$' => template.push_str("$$"),
                    c => template.push(c),
                }
            }
            regex.replace_all(path, template.as_str()).into_owned()
        }
    };
    let new = if new.is_empty() { "/".to_owned() } else { new };
    (new != path).then(|| with_query(&new, uri.query()))
}

#[cfg(test)]
mod tests;
