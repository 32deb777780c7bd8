//! `meshctl check-inject`

mod question;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use mesh_inject::webhook::{self, Selection};
use mesh_inject::{Cluster, Injector, NativeSidecars, Request, Workload, annotation};
use serde_json::{Value, json};

use self::question::{Question, Wanted, unknown_namespace};
use crate::kubernetes::ClusterArguments;
use crate::settings::SettingsArguments;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only the pod (with -f: pod or workload) of this name.
    #[arg(value_name = "POD")]
    name: Option<String>,
    /// Ask about a file or directory instead of a cluster: pods or workloads, their Namespaces and, if there are any, the
    /// MutatingWebhookConfigurations; `-` is standard input. Repeatable.
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with_all = ["kubeconfig", "context", "everywhere"])]
    files: Vec<PathBuf>,
    /// Only this namespace; with -f also the namespace of objects that name none. Default in a cluster: the context's.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Every namespace of the cluster.
    #[arg(short = 'A', long = "all-namespaces", conflicts_with = "namespace")]
    everywhere: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    settings: SettingsArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people: each pod, why, what every webhook said, and warnings.
    Table,
    /// The same with the webhooks only where none selects the pod.
    Short,
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
    let wanted = Wanted {
        name: arguments.name.as_deref(),
        namespace: arguments.namespace.as_deref(),
        everywhere: arguments.everywhere,
    };
    let question = if arguments.files.is_empty() {
        let by_kubelet = injector.settings().native_sidecars == NativeSidecars::Auto;
        Question::from_cluster(&arguments.cluster, &wanted, &arguments.settings, by_kubelet)?
    } else {
        let revision = &injector.settings().revision;
        Question::from_files(&arguments.files, &wanted, &arguments.settings, revision)?
    };
    if question.workloads.is_empty() {
        bail!("no such pod or workload {}", if question.live { "in the cluster" } else { "in the files" });
    }
    if question.configurations.is_empty() {
        eprintln!("warning: no MutatingWebhookConfiguration of the cluster has an entry of an injector");
    }
    let answers: Vec<Answer> = question
        .workloads
        .iter()
        .map(|(workload, namespace, pod)| {
            let mut answer = ask(&injector, &question, workload.clone(), namespace.clone(), pod);
            if question.live {
                answer.warnings.extend(compare(pod, answer.injected));
            }
            answer
        })
        .collect();
    let namespaces: Vec<Value> = question.cluster.namespaces.values().cloned().collect();
    for finding in webhook::check(&question.configurations, &namespaces) {
        // A configuration that was made up here has no bundle, and nobody expects one.
        if question.configurations_given || !matches!(finding, webhook::Finding::NoCaBundle { .. }) {
            eprintln!("warning: {finding}");
        }
    }
    Ok(match arguments.output {
        Output::Table => table(&answers, true),
        Output::Short => table(&answers, false),
        Output::Json => format!("{:#}\n", Value::Array(answers.iter().map(Answer::json).collect())),
    })
}

/// Both questions: the API server's and the handler's; and a rehearsal, which finds what would be refused.
fn ask(
    injector: &Injector,
    question: &Question,
    workload: Workload,
    namespace: String,
    pod: &Value,
) -> Answer {
    let cluster: &Cluster = &question.cluster;
    let unknown = unknown_namespace(&namespace);
    let object = cluster.namespaces.get(&namespace).unwrap_or(&unknown);
    let selections = webhook::selections(&question.configurations, object, pod);
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

/// What surprises people most: the answer is about a pod created now, and the one they look at is older.
fn compare(pod: &Value, injected: bool) -> Option<String> {
    let annotations = pod.pointer("/metadata/annotations");
    let has = annotations.is_some_and(|all| all.get(annotation::STATUS).is_some());
    match (has, injected) {
        (false, true) => Some("the pod runs without a sidecar; a pod created now would get one".to_owned()),
        (true, false) => {
            Some("the pod was injected when it was created; one created now would not be".to_owned())
        }
        _ => None,
    }
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

fn table(answers: &[Answer], every_webhook: bool) -> String {
    let mut text = String::new();
    for answer in answers {
        let mark = if answer.injected { "injected" } else { "NOT injected" };
        let _ = writeln!(
            text,
            "{} {}/{}: {mark}\n  {}",
            answer.workload.kind, answer.namespace, answer.workload.name, answer.reason
        );
        let selected = answer.selections.iter().any(Selection::selected);
        let shown = if every_webhook || !selected { answer.selections.as_slice() } else { &[] };
        let width = shown.iter().map(|selection| selection.webhook.len()).max().unwrap_or_default();
        for selection in shown {
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
