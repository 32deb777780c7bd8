//! Matchers of strings, headers and query parameters.

use std::{fmt, sync::Arc};

use http::{HeaderName, Method, request};

use super::super::error::ConfigError;

/// A compiled regular expression that must match the whole text (RE2 syntax as `regex` understands it).
#[derive(Clone)]
pub struct Regex {
    source: Arc<str>,
    whole: regex::Regex,
}

impl Regex {
    /// Compiles; size is bounded (1 MiB compiled) because patterns come from other people.
    ///
    /// # Errors
    /// [`ConfigError::Regex`] with the pattern.
    pub fn new(pattern: &str) -> Result<Self, ConfigError> {
        let whole = regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
            .size_limit(1 << 20)
            .dot_matches_new_line(true)
            .build()
            .map_err(|source| ConfigError::Regex { pattern: pattern.to_owned(), source })?;
        Ok(Self { source: pattern.into(), whole })
    }

    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Replaces every match inside `text` (Envoy's `regex_rewrite`; `\1` refers to a group).
    ///
    /// # Errors
    /// [`ConfigError::Regex`], which cannot happen for a pattern that compiled as a whole match.
    pub fn replacer(&self) -> Result<regex::Regex, ConfigError> {
        regex::RegexBuilder::new(&self.source)
            .size_limit(1 << 20)
            .build()
            .map_err(|source| ConfigError::Regex { pattern: self.source.to_string(), source })
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, f)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// How a string is compared.
#[derive(Debug, Clone, PartialEq)]
pub enum StringPattern {
    /// The same.
    Exact(Arc<str>),
    /// Begins with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Contains.
    Contains(Arc<str>),
    /// Matches as a whole.
    Regex(Regex),
}

/// A string matcher. With `ignore_case`, ASCII case does not matter (not for regular expressions).
#[derive(Debug, Clone, PartialEq)]
pub struct StringMatcher {
    /// The comparison.
    pub pattern: StringPattern,
    /// Whether ASCII case is ignored.
    pub ignore_case: bool,
}

impl StringMatcher {
    /// Exactly this.
    #[must_use]
    pub fn exact(text: &str) -> Self {
        Self { pattern: StringPattern::Exact(text.into()), ignore_case: false }
    }

    /// Anything that begins with this.
    #[must_use]
    pub fn prefix(text: &str) -> Self {
        Self { pattern: StringPattern::Prefix(text.into()), ignore_case: false }
    }

    /// Whether `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (t, fold) = (text.as_bytes(), self.ignore_case);
        let same = |a: &[u8], b: &[u8]| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        match &self.pattern {
            StringPattern::Exact(p) => same(t, p.as_bytes()),
            StringPattern::Prefix(p) => t.len() >= p.len() && same(&t[..p.len()], p.as_bytes()),
            StringPattern::Suffix(p) => t.len() >= p.len() && same(&t[t.len() - p.len()..], p.as_bytes()),
            StringPattern::Contains(p) if p.is_empty() => true,
            StringPattern::Contains(p) => t.windows(p.len()).any(|w| same(w, p.as_bytes())),
            StringPattern::Regex(r) => r.is_match(text),
        }
    }
}

/// A header (or pseudo-header) matcher.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatcher {
    /// Lower-case name; `:method`, `:path`, `:authority`, `:scheme` are the pseudo-headers.
    pub name: Arc<str>,
    /// What the value must be.
    pub value: HeaderMatch,
    /// Negates the result.
    pub invert: bool,
    /// Match a missing header as an empty value.
    pub missing_as_empty: bool,
}

/// What a header's value must be.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderMatch {
    /// Present, or absent when `false`.
    Present(bool),
    /// A string match over all values joined by `,`.
    Value(StringMatcher),
    /// An integer in `start..end`.
    Range(i64, i64),
}

impl HeaderMatcher {
    /// Whether a request's head matches.
    #[must_use]
    pub fn matches(&self, head: &request::Parts) -> bool {
        let outcome = match pseudo_or_header(&self.name, head) {
            Found::One(value) => self.test(Some(value)),
            Found::Many(joined) => self.test(Some(&joined)),
            Found::None => match (&self.value, self.missing_as_empty) {
                (HeaderMatch::Present(present), false) => !present,
                (_, true) => self.test(Some("")),
                // A missing header fails the match, inverted or not, unless it is about presence.
                _ => {
                    return self.invert
                        && matches!(self.value, HeaderMatch::Value(_) | HeaderMatch::Range(..));
                }
            },
        };
        outcome != self.invert
    }

    fn test(&self, value: Option<&str>) -> bool {
        match (&self.value, value) {
            (HeaderMatch::Present(present), v) => v.is_some() == *present,
            (HeaderMatch::Value(m), Some(v)) => m.matches(v),
            (HeaderMatch::Range(start, end), Some(v)) => {
                v.parse::<i64>().is_ok_and(|n| n >= *start && n < *end)
            }
            (_, None) => false,
        }
    }
}

enum Found<'a> {
    None,
    One(&'a str),
    Many(String),
}

fn pseudo_or_header<'a>(name: &str, head: &'a request::Parts) -> Found<'a> {
    match name {
        ":method" => Found::One(head.method.as_str()),
        ":path" => Found::One(head.uri.path_and_query().map_or("/", |p| p.as_str())),
        ":scheme" => Found::One(head.uri.scheme_str().unwrap_or("http")),
        ":authority" | "host" => match crate::http::host(head) {
            Some(host) => Found::One(host),
            None => Found::None,
        },
        _ => {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return Found::None };
            let mut values = head.headers.get_all(&name).iter().filter_map(|v| v.to_str().ok());
            match (values.next(), values.next()) {
                (None, _) => Found::None,
                (Some(one), None) => Found::One(one),
                (Some(one), Some(two)) => {
                    let mut joined = format!("{one},{two}");
                    for more in values {
                        joined.push(',');
                        joined.push_str(more);
                    }
                    Found::Many(joined)
                }
            }
        }
    }
}

/// A query parameter matcher.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryMatcher {
    /// The parameter's name.
    pub name: Arc<str>,
    /// What its first value must be.
    pub value: QueryMatch,
}

/// What a query parameter's value must be.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryMatch {
    /// Present, with or without a value.
    Present,
    /// A string match, on the value as sent (not percent-decoded, as Envoy).
    Value(StringMatcher),
}

impl QueryMatcher {
    /// Whether a raw query string matches.
    #[must_use]
    pub fn matches(&self, query: &str) -> bool {
        let found = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == &*self.name).then_some(value)
        });
        match (&self.value, found) {
            (_, None) => false,
            (QueryMatch::Present, Some(_)) => true,
            (QueryMatch::Value(m), Some(value)) => m.matches(value),
        }
    }
}

/// Whether a head is a gRPC request.
#[must_use]
pub(crate) fn is_grpc(head: &request::Parts) -> bool {
    head.method == Method::POST
        && head
            .headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|v| v.as_bytes().strip_prefix(b"application/grpc"))
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'+' || rest[0] == b';')
}
