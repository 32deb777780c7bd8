//! The program as others see it: a server process, a client process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

struct Server {
    child: Child,
    port: u16,
    admin: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two ports that nobody uses at the moment.
fn free_ports() -> (u16, u16) {
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (one, two) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    (port(&one), port(&two))
}

fn server(version: &str) -> Server {
    let (port, admin) = free_ports();
    let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-echo"))
        .env("PORT", port.to_string())
        .env("ADMIN_PORT", admin.to_string())
        .env("VERSION", version)
        .env("POD_NAME", "reviews-v7")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The line is printed after the sockets are bound.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening"), "{line}");
    Server { child, port, admin }
}

fn echo(args: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-echo")).args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

#[test]
fn get_prints_what_the_server_saw_and_exits_by_status() {
    let server = server("v7");
    let url = format!("http://127.0.0.1:{}", server.port);
    let (code, answer) = echo(&["get", "--json", "-H", "x-who: me", &format!("{url}/a?b=1")]);
    assert_eq!(code, 0);
    assert_eq!(answer["status"], 200);
    assert_eq!(answer["version"], "v7");
    assert_eq!(answer["body"]["pod"], "reviews-v7");
    assert_eq!(answer["body"]["path"], "/a?b=1");
    assert_eq!(answer["body"]["headers"]["x-who"][0], "me");
    assert_eq!(echo(&["get", "--json", &format!("{url}/status/503")]).0, 1);
    let (unused, _) = free_ports();
    let (code, answer) = echo(&["get", "--json", &format!("http://127.0.0.1:{unused}/")]);
    assert_eq!((code, &answer["error"]), (2, &Value::from("connect: refused")));
}

#[test]
fn client_and_server_count_the_same() {
    let server = server("v1");
    let url = format!("http://127.0.0.1:{}/", server.port);
    let (code, report) =
        echo(&["load", "--json", "--url", &url, "--requests", "101", "--connections", "mixed"]);
    assert_eq!(code, 0);
    assert_eq!(report["by_version"]["v1"], 101);
    assert!(report["fresh"].as_u64().unwrap() >= 51, "{report}");
    let (_, counters) = echo(&["get", "--json", &format!("http://127.0.0.1:{}/counters", server.admin)]);
    assert_eq!(counters["body"]["requests"], 101);
    assert_eq!(counters["body"]["connections"], report["fresh"]);
}

#[test]
fn a_controlled_load_answers_every_command() {
    let server = server("v2");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-echo"))
        .args(["load", "--control", "--url", &format!("http://127.0.0.1:{}/", server.port)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = |command: &str| -> Value {
        writeln!(commands, "{command}").unwrap();
        serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap()
    };
    assert_eq!(ask("stop")["error"], "not possible now");
    assert_eq!(ask("start warm")["started"], true);
    while ask("progress")["requests"].as_u64().unwrap() < 20 {}
    let report = ask("stop");
    assert_eq!(report["name"], "warm");
    assert_eq!(report["failed"], 0);
    assert_eq!(report["by_version"]["v2"], report["requests"]);
    drop(commands);
    assert!(child.wait().unwrap().success());
}
