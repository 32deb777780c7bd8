//! String, header, query and metadata matchers; header operations; fractions.

use std::sync::Arc;

use ::http::{HeaderName, HeaderValue};
use mesh_xds::pb::envoy::{
    config::{core::v3 as core, route::v3 as route},
    r#type::{matcher::v3 as matcher, v3 as types},
};

use super::{At, Result, missing, unsupported};
use crate::{
    config::{
        AppendAction, Fraction, HeaderMatch, HeaderMatcher, HeaderOperation, HeaderOperations, QueryMatch,
        QueryMatcher, RbacRule, Regex, StringMatcher, StringPattern,
    },
    error::ConfigError,
};

pub(super) fn regex(message: &matcher::RegexMatcher) -> Result<Regex> {
    Regex::new(&message.regex).at("regex")
}

pub(super) fn string(message: &matcher::StringMatcher) -> Result<StringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match message.match_pattern.as_ref().ok_or_else(|| missing("match_pattern"))? {
        MatchPattern::Exact(text) => StringPattern::Exact(text.as_str().into()),
        MatchPattern::Prefix(text) => StringPattern::Prefix(text.as_str().into()),
        MatchPattern::Suffix(text) => StringPattern::Suffix(text.as_str().into()),
        MatchPattern::Contains(text) => StringPattern::Contains(text.as_str().into()),
        MatchPattern::SafeRegex(message) => StringPattern::Regex(regex(message)?),
        MatchPattern::Custom(custom) => return Err(unsupported("custom", &custom.name)),
    };
    Ok(StringMatcher { pattern, ignore_case: message.ignore_case })
}

pub(super) fn strings(messages: &[matcher::StringMatcher], field: &str) -> Result<Vec<StringMatcher>> {
    messages.iter().enumerate().map(|(i, m)| string(m).at(format!("{field}[{i}]"))).collect()
}

#[allow(deprecated, reason = "the old forms are still on the wire")]
pub(super) fn header(message: &route::HeaderMatcher) -> Result<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    let plain = |pattern| HeaderMatch::Value(StringMatcher { pattern, ignore_case: false });
    let name = message.name.to_ascii_lowercase();
    if name.is_empty() {
        return Err(missing("name"));
    }
    let value = match &message.header_match_specifier {
        None => HeaderMatch::Present(true),
        Some(Specifier::PresentMatch(present)) => HeaderMatch::Present(*present),
        Some(Specifier::ExactMatch(text)) => plain(StringPattern::Exact(text.as_str().into())),
        Some(Specifier::PrefixMatch(text)) => plain(StringPattern::Prefix(text.as_str().into())),
        Some(Specifier::SuffixMatch(text)) => plain(StringPattern::Suffix(text.as_str().into())),
        Some(Specifier::ContainsMatch(text)) => plain(StringPattern::Contains(text.as_str().into())),
        Some(Specifier::SafeRegexMatch(message)) => plain(StringPattern::Regex(regex(message)?)),
        Some(Specifier::StringMatch(message)) => HeaderMatch::Value(string(message).at("string_match")?),
        Some(Specifier::RangeMatch(range)) => HeaderMatch::Range(range.start, range.end),
    };
    Ok(HeaderMatcher {
        name: name.into(),
        value,
        invert: message.invert_match,
        missing_as_empty: message.treat_missing_header_as_empty,
    })
}

pub(super) fn headers(messages: &[route::HeaderMatcher], field: &str) -> Result<Vec<HeaderMatcher>> {
    messages.iter().enumerate().map(|(i, m)| header(m).at(format!("{field}[{i}]"))).collect()
}

pub(super) fn query(message: &route::QueryParameterMatcher) -> Result<QueryMatcher> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let value = match &message.query_parameter_match_specifier {
        None | Some(Specifier::PresentMatch(true)) => QueryMatch::Present,
        Some(Specifier::PresentMatch(false)) => return Err(unsupported("present_match", "false")),
        Some(Specifier::StringMatch(message)) => QueryMatch::Value(string(message).at("string_match")?),
    };
    Ok(QueryMatcher { name: message.name.as_str().into(), value })
}

/// A metadata matcher with a string (or list of strings) value.
pub(super) fn metadata(message: &matcher::MetadataMatcher) -> Result<RbacRule> {
    use matcher::{list_matcher, metadata_matcher::path_segment::Segment, value_matcher::MatchPattern};
    let path = message.path.iter().map(|segment| match &segment.segment {
        Some(Segment::Key(key)) => Ok(Arc::from(key.as_str())),
        None => Err(missing("path.key")),
    });
    let value =
        message.value.as_ref().and_then(|v| v.match_pattern.as_ref()).ok_or_else(|| missing("value"))?;
    let value = match value {
        MatchPattern::StringMatch(message) => string(message).at("value.string_match")?,
        MatchPattern::PresentMatch(true) => StringMatcher::prefix(""),
        MatchPattern::ListMatch(list) => match &list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => match &one.match_pattern {
                Some(MatchPattern::StringMatch(message)) => string(message).at("value.list_match")?,
                _ => return Err(unsupported("value.list_match", "a list of anything but strings")),
            },
            _ => return Err(unsupported("value.list_match", "this kind of list")),
        },
        _ => return Err(unsupported("value", "a match that is not on strings")),
    };
    Ok(RbacRule::Metadata {
        filter: message.filter.as_str().into(),
        path: path.collect::<Result<_>>()?,
        value,
        invert: message.invert,
    })
}

fn name(text: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(text.to_ascii_lowercase().as_bytes())
        .map_err(|_| ConfigError::invalid("key", text, "not a header name"))
}

#[allow(deprecated, reason = "the old form is still on the wire")]
pub(super) fn operations(add: &[core::HeaderValueOption], remove: &[String]) -> Result<HeaderOperations> {
    let add = add
        .iter()
        .enumerate()
        .filter_map(|(i, option)| operation(option).at(format!("headers_to_add[{i}]")).transpose());
    Ok(HeaderOperations {
        remove: remove.iter().map(|n| name(n).at("headers_to_remove")).collect::<Result<_>>()?,
        add: add.collect::<Result<_>>()?,
    })
}

#[allow(deprecated, reason = "the old form is still on the wire")]
/// `None` when an empty value is not to be added.
pub(super) fn operation(option: &core::HeaderValueOption) -> Result<Option<HeaderOperation>> {
    use core::header_value_option::HeaderAppendAction as Wire;
    let header = option.header.as_ref().ok_or_else(|| missing("header"))?;
    let raw: &[u8] =
        if header.raw_value.is_empty() { header.value.as_bytes() } else { header.raw_value.as_ref() };
    let action = match (option.append, option.append_action()) {
        (Some(false), _) => AppendAction::OverwriteOrAdd,
        (_, Wire::AppendIfExistsOrAdd) => AppendAction::AppendOrAdd,
        (_, Wire::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, Wire::OverwriteIfExistsOrAdd) => AppendAction::OverwriteOrAdd,
        (_, Wire::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    // `host` among the operations would be overruled by the codec; Envoy refuses pseudo-headers as well.
    if header.key.starts_with(':') {
        return Err(ConfigError::invalid("key", &header.key, "pseudo-headers cannot be changed"));
    }
    let value = HeaderValue::from_bytes(raw).map_err(|_| {
        ConfigError::invalid("value", String::from_utf8_lossy(raw), "not allowed in a header")
    })?;
    let template = header.value.contains('%').then(|| Arc::from(header.value.as_str()));
    let name = name(&header.key)?;
    let nothing = value.is_empty() && !option.keep_empty_value;
    Ok((!nothing).then_some(HeaderOperation { name, value, template, action }))
}

pub(super) fn fraction(message: &types::FractionalPercent) -> Fraction {
    use types::fractional_percent::DenominatorType;
    let scale = match message.denominator() {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    Fraction(message.numerator.saturating_mul(scale).min(1_000_000))
}

/// A fraction that a runtime key could override; there is no runtime, so its default counts.
pub(super) fn runtime_fraction(message: &core::RuntimeFractionalPercent) -> Fraction {
    message.default_value.as_ref().map_or(Fraction::ALL, fraction)
}
