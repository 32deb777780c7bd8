//! `meshctl uninject`

use std::path::PathBuf;

use clap::Args;
use mesh_inject::offline;

use crate::documents::{self, Form};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File or directory of YAML or JSON documents; `-` is standard input.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Form,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let mut output = Vec::new();
    let mut changed = 0;
    for document in documents::read_all(&arguments.files)? {
        let result = offline::uninject(&document)?;
        for warning in &result.warnings {
            eprintln!("warning: {warning}");
        }
        changed += result.changed;
        output.push(result.document);
    }
    if changed == 0 {
        eprintln!("nothing here is injected");
    }
    Ok(documents::write(&output, arguments.output))
}
