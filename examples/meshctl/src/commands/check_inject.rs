//! `meshctl check-inject`

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use mesh_inject::offline;
use mesh_inject::webhook::{self, Selection};
use mesh_inject::{Cluster, Injector, Request, WebhookOptions, Workload};
use serde_json::{Value, json};

use crate::documents;
use crate::settings::SettingsArguments;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only the pod or workload of this name.
    name: Option<String>,
    /// File or directory with pods or workloads, their Namespaces and, if there are any, the
    /// MutatingWebhookConfigurations; `-` is standard input. Repeatable.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only this namespace; also the namespace of objects that name none.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    settings: SettingsArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    Table,
    /// A JSON list.
    Json,
}

struct Answer {
    workload: Workload,
    namespace: String,
    selections: Vec<Selection>,
    injected: bool,
    reason: String,
    warnings: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let injector = Injector::new(arguments.settings.settings()?)?;
    let objects = documents::objects(documents::read_all(&arguments.files)?);
    let cluster = arguments.settings.cluster(&objects)?;
    let mut configurations: Vec<Value> =
        objects.iter().filter(|object| object["kind"] == "MutatingWebhookConfiguration").cloned().collect();
    if configurations.is_empty() {
        let options =
            WebhookOptions { revision: injector.settings().revision.clone(), ..WebhookOptions::default() };
        configurations.push(options.build());
    }
    let mut answers = Vec::new();
    for object in &objects {
        for (workload, pod) in offline::pods(object) {
            let namespace = match (workload.namespace.as_str(), &arguments.namespace) {
                ("", Some(namespace)) => namespace.clone(),
                ("", None) => "default".to_owned(),
                (own, _) => own.to_owned(),
            };
            let wanted = arguments.namespace.as_ref().is_none_or(|wanted| *wanted == namespace)
                && arguments.name.as_ref().is_none_or(|wanted| *wanted == workload.name);
            if wanted {
                answers.push(ask(&injector, &configurations, &cluster, workload, namespace, &pod));
            }
        }
    }
    if answers.is_empty() {
        bail!("no such pod or workload in the files");
    }
    let namespaces: Vec<Value> = cluster.namespaces.values().cloned().collect();
    let findings = webhook::check(&configurations, &namespaces);
    for finding in findings {
        // A configuration that was made up here has no bundle, and nobody expects one.
        let made_up = matches!(finding, webhook::Finding::NoCaBundle { .. });
        if !made_up || objects.iter().any(|object| object["kind"] == "MutatingWebhookConfiguration") {
            eprintln!("warning: {finding}");
        }
    }
    Ok(match arguments.output {
        Output::Table => table(&answers),
        Output::Json => format!("{:#}\n", Value::Array(answers.iter().map(Answer::json).collect())),
    })
}

/// Both questions: the API server's and the handler's; and a rehearsal, which finds what would be refused.
fn ask(
    injector: &Injector,
    configurations: &[Value],
    cluster: &Cluster,
    workload: Workload,
    namespace: String,
    pod: &Value,
) -> Answer {
    let unknown = json!({"metadata": {"name": namespace}});
    let object = cluster.namespaces.get(&namespace).unwrap_or(&unknown);
    let selections = webhook::selections(configurations, object, pod);
    let selected = selections.iter().find(|selection| selection.selected());
    let (decision, notes) = injector.decide_with_notes(pod, &namespace);
    let mut warnings: Vec<String> = notes.iter().map(ToString::to_string).collect();
    let (injected, reason) = match (selected, decision.is_inject()) {
        (None, _) => (false, "no webhook selects the pod".to_owned()),
        (Some(selection), false) => (false, format!("{}, but {}", selection.webhook, decision.explain())),
        (Some(selection), true) => {
            let mut request = Request::new(pod, &namespace, cluster);
            if workload.kind != "Pod" {
                request.workload = Some(workload.clone());
            }
            match injector.inject(&request) {
                Ok(done) => {
                    warnings.extend(done.warnings.iter().map(ToString::to_string));
                    (true, format!("{}; {}", selection.webhook, decision.explain()))
                }
                Err(error) => (false, format!("refused: {error}")),
            }
        }
    };
    Answer { workload, namespace, selections, injected, reason, warnings }
}

impl Answer {
    fn json(&self) -> Value {
        json!({
            "kind": self.workload.kind,
            "namespace": self.namespace,
            "name": self.workload.name,
            "injected": self.injected,
            "reason": self.reason,
            "webhooks": self.selections,
            "warnings": self.warnings,
        })
    }
}

fn table(answers: &[Answer]) -> String {
    let mut text = String::new();
    for answer in answers {
        let mark = if answer.injected { "injected" } else { "NOT injected" };
        let _ = writeln!(
            text,
            "{} {}/{}: {mark}\n  {}",
            answer.workload.kind, answer.namespace, answer.workload.name, answer.reason
        );
        let width =
            answer.selections.iter().map(|selection| selection.webhook.len()).max().unwrap_or_default();
        for selection in &answer.selections {
            let why = selection.unmet.as_ref().map_or_else(
                || format!("selected, calls {}", selection.target),
                |unmet| format!("not selected: {unmet}"),
            );
            let _ = writeln!(text, "  {:width$}  {why}", selection.webhook);
        }
        for warning in &answer.warnings {
            let _ = writeln!(text, "  warning: {warning}");
        }
    }
    text
}
