//! Each MUST of the SPIFFE-ID standard, one line per statement and example: accepted, or refused for that reason.

use mesh_identity::{SpiffeId, TrustDomain};

/// Section, statement, text, and the reason of the refusal (`None`: accepted).
const IDS: &[(&str, &str, &str, Option<&str>)] = &[
    ("2", "the scheme is spiffe", "spiffe://td.example/a", None),
    ("2", "another scheme", "http://td.example/a", Some("scheme")),
    ("2", "no scheme", "td.example/a", Some("scheme")),
    ("2", "no authority", "spiffe:/td.example/a", Some("scheme")),
    ("2", "the scheme is written in lower case", "SPIFFE://td.example/a", Some("scheme")),
    ("2", "nothing", "", Some("empty")),
    ("2", "no query", "spiffe://td.example/a?b=c", Some("query")),
    ("2", "no query after the trust domain", "spiffe://td.example?b", Some("query")),
    ("2", "no empty query", "spiffe://td.example/a?", Some("query")),
    ("2", "no fragment", "spiffe://td.example/a#b", Some("fragment")),
    ("2", "no fragment after the trust domain", "spiffe://td.example#b", Some("fragment")),
    ("2.1", "the trust domain is not empty", "spiffe://", Some("trust_domain_missing")),
    ("2.1", "the trust domain is not empty, with a path", "spiffe:///a", Some("trust_domain_missing")),
    ("2.1", "letters, digits, dot, dash, underscore", "spiffe://a-b_c.9/x", None),
    ("2.1", "no upper case", "spiffe://Td.example/a", Some("trust_domain_upper_case")),
    ("2.1", "no user information", "spiffe://user@td.example/a", Some("user_info")),
    ("2.1", "no user and password", "spiffe://user:pass@td.example/a", Some("user_info")),
    ("2.1", "no port", "spiffe://td.example:8080/a", Some("port")),
    ("2.1", "no empty port", "spiffe://td.example:/a", Some("port")),
    ("2.1", "no percent-encoding", "spiffe://td%2eexample/a", Some("percent_encoding")),
    ("2.1", "no other punctuation", "spiffe://td,example/a", Some("trust_domain_character")),
    ("2.1", "no IPv6 literal", "spiffe://[::1]/a", Some("trust_domain_character")),
    ("2.1", "no international letters", "spiffe://bücher.example/a", Some("trust_domain_character")),
    ("2.1", "no blank", "spiffe://td example/a", Some("trust_domain_character")),
    ("2.2", "the path may be absent", "spiffe://td.example", None),
    ("2.2", "letters, digits, dot, dash, underscore", "spiffe://td.example/A-z_0.9", None),
    ("2.2", "case is kept", "spiffe://td.example/Path", None),
    ("2.2", "many segments", "spiffe://td.example/a/b/c/d/e", None),
    ("2.2", "three dots are a name", "spiffe://td.example/.../a", None),
    ("2.2", "no lone slash", "spiffe://td.example/", Some("trailing_slash")),
    ("2.2", "no trailing slash", "spiffe://td.example/a/", Some("trailing_slash")),
    ("2.2", "no empty segment first", "spiffe://td.example//a", Some("empty_segment")),
    ("2.2", "no empty segment within", "spiffe://td.example/a//b", Some("empty_segment")),
    ("2.2", "no dot segment", "spiffe://td.example/./a", Some("dot_segment")),
    ("2.2", "no dot segment at the end", "spiffe://td.example/a/.", Some("dot_segment")),
    ("2.2", "no dot-dot segment", "spiffe://td.example/a/../b", Some("dot_segment")),
    ("2.2", "no dot-dot segment at the end", "spiffe://td.example/a/..", Some("dot_segment")),
    ("2.2", "no percent-encoding", "spiffe://td.example/a%20b", Some("percent_encoding")),
    ("2.2", "no percent-encoded dots", "spiffe://td.example/%2e%2e/a", Some("percent_encoding")),
    ("2.2", "no colon", "spiffe://td.example/a:b", Some("path_character")),
    ("2.2", "no blank", "spiffe://td.example/a b", Some("path_character")),
    ("2.2", "no backslash", "spiffe://td.example/a\\b", Some("path_character")),
    ("2.2", "no zero byte", "spiffe://td.example/a\0b", Some("path_character")),
    ("2.2", "no line end", "spiffe://td.example/a\n", Some("path_character")),
    ("2.2", "no international letters", "spiffe://td.example/bücher", Some("path_character")),
    ("2.2", "no tilde, though a URI allows it", "spiffe://td.example/~a", Some("path_character")),
];

#[test]
fn ids() {
    for (section, statement, text, refusal) in IDS {
        let outcome = SpiffeId::parse(text).map_err(|error| error.reason());
        assert_eq!(outcome.as_ref().err(), refusal.as_ref(), "section {section}: {statement}: {text:?}");
        if let Ok(id) = outcome {
            assert_eq!(id.as_str(), *text, "section {section}: accepted IDs are not rewritten");
        }
    }
}

#[test]
fn lengths() {
    // Section 2.3: 2048 bytes for the ID, 255 for the trust domain, and no shorter.
    let id_of = |length: usize| format!("spiffe://td/{}", "a".repeat(length - 12));
    assert!(SpiffeId::parse(&id_of(2048)).is_ok());
    assert_eq!(SpiffeId::parse(&id_of(2049)).unwrap_err().reason(), "too_long");
    assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
    assert_eq!(TrustDomain::parse(&"a".repeat(256)).unwrap_err().reason(), "trust_domain_too_long");
    let in_an_id = format!("spiffe://{}/a", "a".repeat(256));
    assert_eq!(SpiffeId::parse(&in_an_id).unwrap_err().reason(), "trust_domain_too_long");
}

#[test]
fn refusals_name_the_section() {
    for (section, statement, text, _) in IDS.iter().filter(|(_, _, _, refusal)| refusal.is_some()) {
        let message = SpiffeId::parse(text).unwrap_err().to_string();
        let named = message.split_once("(SPIFFE-ID ").and_then(|(_, rest)| rest.split_once(')'));
        let named: Vec<_> = named.map(|(sections, _)| sections.split(", ").collect()).unwrap_or_default();
        assert!(named.contains(section), "section {section}: {statement}: {message}");
    }
}
