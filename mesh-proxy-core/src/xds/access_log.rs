//! Access logs.

use std::sync::Arc;

use mesh_xds::pb::envoy::{
    config::{accesslog::v3 as pb, core::v3 as core},
    extensions::access_loggers::{
        file::v3::{FileAccessLog, file_access_log::AccessLogFormat as FileFormat},
        stream::v3::{
            StderrAccessLog, StdoutAccessLog, stderr_access_log::AccessLogFormat as StderrFormat,
            stdout_access_log::AccessLogFormat as StdoutFormat,
        },
    },
};
use prost_types::{Struct, value::Kind};

use super::{At, Result, audit::fields, decode_if, missing, type_name, unsupported};
use crate::config::{AccessLog, AccessLogFilter, AccessLogFormat};

pub(super) fn access_logs(messages: &[pb::AccessLog]) -> Result<Vec<AccessLog>> {
    messages.iter().enumerate().map(|(i, m)| access_log(m).at(format!("access_log[{i}]"))).collect()
}

fn access_log(message: &pb::AccessLog) -> Result<AccessLog> {
    let Some(pb::access_log::ConfigType::TypedConfig(any)) = &message.config_type else {
        return Err(missing("typed_config"));
    };
    let (path, format) = if let Some(file) = decode_if::<FileAccessLog>(any)? {
        let format = match &file.access_log_format {
            None => AccessLogFormat::Default,
            Some(FileFormat::LogFormat(format)) => substitution(format)?,
            #[allow(deprecated, reason = "the old forms are still on the wire")]
            Some(FileFormat::Format(text)) => AccessLogFormat::Text(text.as_str().into()),
            #[allow(deprecated, reason = "the old forms are still on the wire")]
            Some(FileFormat::JsonFormat(json) | FileFormat::TypedJsonFormat(json)) => self::json(json)?,
        };
        (Arc::from(file.path.as_str()), format)
    } else if let Some(stream) = decode_if::<StdoutAccessLog>(any)? {
        let format = match &stream.access_log_format {
            None => AccessLogFormat::Default,
            Some(StdoutFormat::LogFormat(format)) => substitution(format)?,
        };
        ("/dev/stdout".into(), format)
    } else if let Some(stream) = decode_if::<StderrAccessLog>(any)? {
        let format = match &stream.access_log_format {
            None => AccessLogFormat::Default,
            Some(StderrFormat::LogFormat(format)) => substitution(format)?,
        };
        ("/dev/stderr".into(), format)
    } else {
        return Err(unsupported("typed_config", type_name(any)));
    };
    let filters = message.filter.as_ref().map(|f| filter(f).at("filter")).transpose()?.unwrap_or_default();
    Ok(AccessLog { path, format, filters })
}

fn substitution(message: &core::SubstitutionFormatString) -> Result<AccessLogFormat> {
    use core::substitution_format_string::Format;
    fields!(message => core::SubstitutionFormatString {
        obeyed: [format],
        // Which operators there are is fixed; a log has no content type; keys are written in their order.
        ignored: [content_type, formatters, json_format_options],
        refused: [omit_empty_values],
    });
    match message.format.as_ref().ok_or_else(|| missing("log_format"))? {
        #[allow(deprecated, reason = "the old form is still on the wire")]
        Format::TextFormat(text) => Ok(AccessLogFormat::Text(text.as_str().into())),
        Format::TextFormatSource(source) => match &source.specifier {
            Some(core::data_source::Specifier::InlineString(text)) => {
                Ok(AccessLogFormat::Text(text.as_str().into()))
            }
            _ => Err(unsupported("text_format_source", "a source that is not inline text")),
        },
        Format::JsonFormat(json) => self::json(json),
    }
}

fn json(message: &Struct) -> Result<AccessLogFormat> {
    let fields = message.fields.iter().map(|(key, value)| match &value.kind {
        Some(Kind::StringValue(text)) => Ok((Arc::from(key.as_str()), Arc::from(text.as_str()))),
        _ => Err(unsupported("json_format", format!("{key}: a value that is not a string"))),
    });
    Ok(AccessLogFormat::Json(fields.collect::<Result<_>>()?))
}

fn filter(message: &pb::AccessLogFilter) -> Result<Vec<AccessLogFilter>> {
    use pb::{access_log_filter::FilterSpecifier, comparison_filter::Op};
    let bound = |comparison: Option<&pb::ComparisonFilter>| -> Result<u32> {
        let comparison = comparison.ok_or_else(|| missing("comparison"))?;
        match comparison.op() {
            Op::Ge => Ok(comparison.value.as_ref().map_or(0, |v| v.default_value)),
            other => Err(unsupported("comparison.op", other.as_str_name())),
        }
    };
    Ok(match message.filter_specifier.as_ref().ok_or_else(|| missing("filter_specifier"))? {
        FilterSpecifier::ResponseFlagFilter(flags) => {
            vec![AccessLogFilter::ResponseFlags(flags.flags.iter().map(|f| f.as_str().into()).collect())]
        }
        FilterSpecifier::StatusCodeFilter(status) => {
            let least = bound(status.comparison.as_ref())?;
            vec![AccessLogFilter::StatusAtLeast(u16::try_from(least).unwrap_or(u16::MAX))]
        }
        FilterSpecifier::DurationFilter(duration) => {
            vec![AccessLogFilter::DurationAtLeast(bound(duration.comparison.as_ref())?.into())]
        }
        FilterSpecifier::AndFilter(and) => {
            let all = and.filters.iter().map(filter).collect::<Result<Vec<_>>>()?;
            all.into_iter().flatten().collect()
        }
        _ => return Err(unsupported("filter_specifier", "this filter")),
    })
}
