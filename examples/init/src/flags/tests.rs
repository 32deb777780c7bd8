use super::*;

fn parse(line: &[&str], environment: &[(&str, &str)]) -> Result<Flags, UsageError> {
    let args: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Flags::parse(&args, &environment).map(|flags| flags.expect("no help was asked for"))
}

/// What Istio's injector passes.
const INJECTED: &[&str] = &[
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "-d",
    "15090,15021,15020",
    "--log_output_level=default:info",
];

#[test]
fn injected_arguments_are_the_default_intent() {
    let flags = parse(INJECTED, &[]).expect("they are right");
    assert_eq!(flags.command, Command::Apply);
    assert_eq!(flags.config.parse(), Ok(Interception::default()));
}

#[test]
fn short_and_long_forms_say_the_same() {
    let long = parse(&["--proxy-uid=7", "--istio-outbound-ports", "80", "--redirect-dns", "--dry-run"], &[]);
    for short in
        [&["-u", "7", "-q", "80", "--redirect-dns=true", "-n"][..], &["-u7", "-nq=80", "--redirect-dns"]]
    {
        assert_eq!(parse(short, &[]), long);
    }
    assert_eq!(long.map(|flags| flags.command), Ok(Command::Plan));
}

#[test]
fn the_command_line_wins_over_the_environment() {
    let environment = [
        ("PROXY_UID", "8"),
        ("ENVOY_PORT", "1"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "java,202"),
        ("DUAL_STACK", "false"),
        ("ISTIO_DUAL_STACK", "true"),
        ("REDIRECT_DNS", ""),
    ];
    let flags = parse(&["-u", "9"], &environment).expect("they are right");
    assert_eq!(flags.config.proxy_uid, "9");
    assert_eq!(flags.config.proxy_port, "15001");
    assert_eq!(flags.config.owner_groups_include, "java,202");
    assert!(flags.dual_stack && !flags.config.redirect_dns);
}

#[test]
fn wrong_arguments_are_named() {
    let reason = |line: &[&str]| parse(line, &[]).map_err(|error| error.reason());
    assert_eq!(reason(&["--no-such-flag"]), Err("unknown_flag"));
    assert_eq!(reason(&["-Z"]), Err("unknown_flag"));
    assert_eq!(reason(&["-p"]), Err("no_value"));
    assert_eq!(reason(&["--redirect-dns=perhaps"]), Err("bad_value"));
    assert_eq!(reason(&["--probe-timeout", "5"]), Err("bad_value"));
    assert_eq!(reason(&["install"]), Err("unknown_word"));
    assert_eq!(reason(&["apply", "more"]), Err("unknown_word"));
}

#[test]
fn help_is_no_error_and_names_annotations() {
    let args = ["--help".to_owned()];
    assert_eq!(Flags::parse(&args, &BTreeMap::new()), Ok(None));
    for flag in FLAGS {
        assert!(help().contains(flag.long), "{}", flag.long);
    }
    assert!(help().contains("traffic.sidecar.istio.io/excludeOutboundPorts"));
}

proptest::proptest! {
    #[test]
    fn nothing_that_is_typed_panics(words in proptest::collection::vec("(-[a-z]|--[a-z-]{1,20}|[0-9,.:/*]{0,12}|[a-z]{1,8})=?[0-9a-z,:/*-]{0,8}", 0..8)) {
        crate::fuzz_flags(words.join("\n").as_bytes());
    }

    #[test]
    fn flags_with_any_value_are_read_or_refused(flag in 0..FLAGS.len(), value in ".{0,20}") {
        crate::fuzz_flags(format!("--{}\n{value}", FLAGS[flag].long).as_bytes());
    }
}
