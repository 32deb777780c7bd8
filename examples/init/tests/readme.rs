//! What the READMEs show of the program is what it prints, to the letter.

use std::path::Path;
use std::process::Command;

const NETFILTER: &str = include_str!("../../../mesh-netfilter/README.md");
const OWN: &str = include_str!("../README.md");

/// The sessions of a README: a command that may go on after a backslash, and what it prints.
fn sessions(readme: &str) -> Vec<(String, String)> {
    let blocks = readme.split("```text\n$ ").skip(1).filter_map(|rest| rest.split("\n```").next());
    let session = |block: &str| {
        let (mut command, mut said) = (String::new(), block);
        loop {
            let (line, rest) = said.split_once('\n').unwrap_or((said, ""));
            said = rest;
            match line.strip_suffix('\\') {
                Some(line) => command.push_str(line),
                None => {
                    command.push_str(line);
                    return (command, said.to_owned());
                }
            }
        }
    };
    blocks.map(session).collect()
}

#[test]
fn every_session_is_what_the_program_prints() {
    let folder = Path::new(env!("CARGO_BIN_EXE_mesh-init")).parent().expect("a folder");
    let sessions = [sessions(NETFILTER), sessions(OWN)].concat();
    assert!(sessions.iter().any(|(command, _)| command.contains("3306")), "{sessions:?}");
    for (command, said) in sessions {
        let output = Command::new("/bin/sh")
            .args(["-c", &command])
            .env_clear()
            .env("PATH", folder)
            .output()
            .expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), said.trim_end(), "{command}");
    }
}

/// One screen, as far as a terminal goes that nobody has made larger.
#[test]
fn why_a_port_is_not_intercepted_fits_one_screen() {
    let (_, said) =
        sessions(NETFILTER).into_iter().find(|(command, _)| command.contains("3306")).expect("it is there");
    assert!(said.lines().count() <= 24 && said.lines().all(|line| line.chars().count() <= 160), "{said}");
    assert!(said.contains("excluded outbound port") && said.contains("not through the proxy"), "{said}");
}

#[test]
fn the_matrix_has_a_row_for_every_backend() {
    let matrix =
        NETFILTER.split("## Backends").nth(1).and_then(|rest| rest.split("\n\n").nth(1)).expect("a table");
    let rows: Vec<String> = matrix
        .lines()
        .skip(2)
        .filter_map(|row| Some(row.split('|').nth(1)?.trim().trim_matches('`').to_owned()))
        .collect();
    assert_eq!(rows, ["netlink", "nft", "iptables-nft", "iptables-legacy"]);
    for row in rows {
        assert_eq!(
            row.parse::<mesh_netfilter::backend::Kind>().map(|kind| kind.to_string()),
            Ok(row.clone())
        );
    }
}

#[test]
fn every_command_of_the_help_is_in_the_readme() {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-init")).arg("--help").output().expect("it runs");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let commands = help.split(['[', ']']).nth(1).expect("commands in brackets");
    for command in commands.split('|') {
        assert!(OWN.contains(&format!("| `{command}")), "{command}");
    }
}
