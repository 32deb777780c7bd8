//! A load that another process steers through standard input, one JSON line per command.

use std::io::BufRead as _;
use std::process::ExitCode;

use serde_json::json;
use tokio::sync::mpsc;

use crate::load::{Load, LoadConfig};
use crate::print_line;

/// Obeys `start NAME`, `progress`, `stop` and `quit` until the end of standard input.
pub(crate) async fn serve_commands(config: LoadConfig) -> ExitCode {
    let (send, mut lines) = mpsc::channel(16);
    // Standard input has no readiness worth relying on; a thread of its own reads it.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut current: Option<(String, Load)> = None;
    let mut failed = 0;
    while let Some(line) = lines.recv().await {
        let (command, rest) = line.trim().split_once(' ').unwrap_or_else(|| (line.trim(), ""));
        match (command, current.take()) {
            ("start", None) => {
                current = Some((rest.trim().to_owned(), Load::start(config.clone())));
                print_line(&json!({ "name": rest.trim(), "started": true }).to_string());
            }
            ("progress", Some((name, load))) => {
                print_line(&load.progress().to_json(&name).to_string());
                current = Some((name, load));
            }
            ("stop", Some((name, load))) => {
                let report = load.stop().await;
                failed += report.failed();
                print_line(&report.to_json(&name).to_string());
            }
            ("quit", before) => {
                current = before;
                break;
            }
            (_, before) => {
                let running = before.as_ref().map(|(name, _)| name.as_str());
                print_line(
                    &json!({ "error": "not possible now", "command": line, "running": running }).to_string(),
                );
                current = before;
            }
        }
    }
    if let Some((_, load)) = current {
        failed += load.stop().await.failed();
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
