//! `meshctl inject`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use mesh_inject::offline::inject_document;
use mesh_inject::patch;

use crate::documents::{self, Form};
use crate::settings::SettingsArguments;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File or directory of YAML or JSON documents; `-` is standard input.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Output,
    #[command(flatten)]
    settings: SettingsArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// YAML documents, separated by `---`.
    Yaml,
    /// One JSON object; a `List` when there are several documents.
    Json,
    /// For each document one line: the JSON patch that injects it.
    Patch,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let injector = arguments.settings.offline_injector()?;
    let input = documents::read_all(&arguments.files)?;
    let cluster = arguments.settings.cluster(&documents::objects(input.clone()))?;
    let mut output = Vec::with_capacity(input.len());
    let mut patches = String::new();
    for document in &input {
        let name = || document.pointer("/metadata/name").map(ToString::to_string).unwrap_or_default();
        let (injected, reports) = inject_document(&injector, &cluster, document).with_context(name)?;
        for report in reports {
            if let Some(message) = report.skip_message() {
                eprintln!("{message}");
            }
            for warning in &report.warnings {
                eprintln!("warning: {} {}: {warning}", report.kind, report.full_name());
            }
        }
        if arguments.output == Output::Patch {
            patches.push_str(&serde_json::to_string(&patch::diff(document, &injected))?);
            patches.push('\n');
        }
        output.push(injected);
    }
    Ok(match arguments.output {
        Output::Yaml => documents::write(&output, Form::Yaml),
        Output::Json => documents::write(&output, Form::Json),
        Output::Patch => patches,
    })
}
