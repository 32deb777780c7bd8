use super::*;
use crate::config::Regex;

fn normalized(path: &str, how: PathNormalization) -> (Normalized, String) {
    let mut head = http::Request::get(path).body(()).unwrap().into_parts().0;
    let outcome = normalize(&mut head, how);
    (outcome, head.uri.to_string())
}

#[test]
fn dot_segments_and_escapes_are_normalised() {
    let how = PathNormalization { normalize: true, ..PathNormalization::default() };
    for (from, to) in [
        ("/a/b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b?q=/../x", "/b?q=/../x"),
        ("/a/b/..", "/a/"),
        ("/%61%2Fb", "/a%2Fb"),
        ("/a%2fb", "/a%2Fb"),
        ("/a//b", "/a//b"),
        ("/a\\b", "/a/b"),
    ] {
        assert_eq!(normalized(from, how), (Normalized::Done, to.to_owned()), "{from}");
    }
    assert_eq!(normalized("/../x", how).0, Normalized::Rejected);
    assert_eq!(normalized("/%zz", how).0, Normalized::Rejected);
    assert_eq!(normalized("/%00", how).0, Normalized::Rejected);
}

#[test]
fn slashes_are_merged_and_unescaped_on_request() {
    let merge = PathNormalization { merge_slashes: true, ..PathNormalization::default() };
    assert_eq!(normalized("/a///b?c//d", merge).1, "/a/b?c//d");
    let escaped = |escaped_slashes| PathNormalization { escaped_slashes, ..PathNormalization::default() };
    assert_eq!(normalized("/a%2Fb", escaped(EscapedSlashes::Keep)).1, "/a%2Fb");
    assert_eq!(normalized("/a%2Fb", escaped(EscapedSlashes::Reject)).0, Normalized::Rejected);
    assert_eq!(
        normalized("/a%2fb", escaped(EscapedSlashes::UnescapeAndRedirect)),
        (Normalized::Redirect, "/a/b".to_owned())
    );
    assert_eq!(normalized("/a%2Fb", escaped(EscapedSlashes::UnescapeAndForward)).1, "/a/b");
}

#[test]
fn rewrites_keep_the_query() {
    let uri: Uri = "/api/v1/x?q=1".parse().unwrap();
    let prefix = RouteMatch { path: PathMatch::Prefix("/api/".into()), ..RouteMatch::default() };
    let to = |rewrite: &PathRewrite, m: &RouteMatch| super::rewrite(&uri, m, rewrite);
    assert_eq!(to(&PathRewrite::Prefix("/".into()), &prefix).as_deref(), Some("/v1/x?q=1"));
    let exact = RouteMatch { path: PathMatch::Exact("/api/v1/x".into()), ..RouteMatch::default() };
    assert_eq!(to(&PathRewrite::Prefix("/new".into()), &exact).as_deref(), Some("/new?q=1"));
    let regex = PathRewrite::Regex {
        pattern: Regex::new("^/api/(v\\d)/").unwrap(),
        substitution: r"/\1/api/".into(),
    };
    assert_eq!(to(&regex, &prefix).as_deref(), Some("/v1/api/x?q=1"));
    assert_eq!(to(&PathRewrite::Prefix("/api/".into()), &prefix), None);
}
