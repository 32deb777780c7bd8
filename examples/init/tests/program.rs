//! The program itself, in network namespaces of its own: what breaks other init containers, and every exit status.

use std::process::{Command, Output};

use libtest_mimic::{Arguments, Failed, Trial};

/// What Istio's injector passes.
const INJECTED: &str = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020";

/// A network as a pod has it: an address, a default route, loopback still down.
const NETWORK: &str = "ip link add eth0 type veth peer name far && ip address add 10.9.0.1/24 dev eth0 \
                       && ip link set eth0 up && ip link set far up && ip route add default via 10.9.0.2";

struct Case {
    name: &'static str,
    /// A shell script; `$INIT` is the program and `$ARGS` what the injector passes.
    script: String,
    status: i32,
    /// What must be printed, on either stream.
    says: &'static [&'static str],
}

fn case(name: &'static str, script: impl Into<String>, status: i32, says: &'static [&'static str]) -> Case {
    Case { name, script: script.into(), status, says }
}

fn cases() -> Vec<Case> {
    let apply = "eval $INIT istio-iptables $ARGS --log_output_level=default:info";
    vec![
        case(
            "second_run_changes_nothing",
            format!("{apply} && {apply}"),
            0,
            &["19 changes", "mesh-init: 0 changes"],
        ),
        case(
            "loopback_is_switched_on",
            format!("{apply} && ip link show lo | grep -q LOOPBACK,UP"),
            0,
            &["it is up now"],
        ),
        case("force_apply_writes_anew", format!("{apply} && {apply} --force-apply"), 0, &["20 changes"]),
        case(
            "dry_run_changes_nothing",
            format!("{apply} --dry-run && eval $INIT plan $ARGS"),
            0,
            &["+ table inet mesh"],
        ),
        case(
            "clean_leaves_nothing",
            format!("{apply} && $INIT --cleanup-only && $INIT clean"),
            0,
            &["0 changes; nothing of ours"],
        ),
        case(
            "clean_can_be_tried",
            format!("{apply} && $INIT clean --dry-run && eval $INIT verify $ARGS"),
            0,
            &["- table inet mesh", "as it should be"],
        ),
        case(
            "clean_leaves_alone_what_it_is_told_to",
            format!("{apply} && $INIT --cleanup-only --skip-rule-apply && eval $INIT verify $ARGS"),
            0,
            &["0 changes; --skip-rule-apply", "as it should be"],
        ),
        case(
            "verify_as_an_application",
            format!("{apply} && eval $INIT verify $ARGS"),
            0,
            &["as an application to elsewhere"],
        ),
        case(
            "verify_as_the_proxy",
            format!(
                "{apply} && eval setpriv --reuid 1337 --regid 1337 --clear-groups --inh-caps=+net_admin --ambient-caps=+net_admin $INIT verify $ARGS"
            ),
            0,
            &["as the proxy to its own pod", "127.0.0.6:15002"],
        ),
        case(
            "validation_container",
            format!(
                "{apply} && eval setpriv --reuid 1337 --regid 1337 --clear-groups $INIT $ARGS --run-validation --skip-rule-apply"
            ),
            0,
            &["arrived at port 15006"],
        ),
        case(
            "probe_without_rules_fails",
            "ip link set lo up; eval $INIT $ARGS --run-validation --skip-rule-apply --probe-timeout 300ms",
            126,
            &["did not arrive"],
        ),
        case(
            "verify_without_rules_fails",
            "eval $INIT verify $ARGS",
            1,
            &["missing: table inet mesh", "missing: MESH_OUTPUT: -o lo -j RETURN"],
        ),
        case(
            "verify_names_what_was_added",
            format!(
                "{apply} && nft add rule inet mesh MESH_INBOUND tcp dport 7 return; eval $INIT verify $ARGS"
            ),
            1,
            &["residual: MESH_INBOUND: -p tcp -m tcp --dport 7 -j RETURN"],
        ),
        case(
            "flush_by_another_is_noticed",
            format!("{apply} && nft flush ruleset; eval $INIT verify $ARGS"),
            1,
            &["missing: chain MESH_OUTPUT"],
        ),
        case(
            "read_only_root",
            format!("unshare -m sh -c 'mount -o remount,bind,ro / && ! touch /x && {apply}'"),
            0,
            &["19 changes"],
        ),
        case(
            "without_net_raw",
            format!("setpriv --bounding-set=-all,+net_admin --inh-caps=-all sh -c '{apply}'"),
            0,
            &["19 changes"],
        ),
        case(
            "without_net_admin",
            format!(
                "ip link set lo up; setpriv --bounding-set=-all,+net_raw --inh-caps=-all sh -c '{apply}'"
            ),
            1,
            &["CAP_NET_ADMIN"],
        ),
        case(
            "without_ipv6",
            format!("{apply} && ! ip -6 address show lo | grep -q '::6'"),
            0,
            &["19 changes"],
        ),
        case(
            "ipv6_is_switched_off",
            format!("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; {apply} --enable-ipv6"),
            1,
            &["IPv6 is switched off"],
        ),
        case(
            "istio_s_rules_are_refused",
            format!("nft add table inet istio-proxy-nat; nft add chain inet istio-proxy-nat output; {apply}"),
            1,
            &["--replace-istio"],
        ),
        case(
            "istio_s_rules_are_replaced",
            format!(
                "nft add table inet istio-proxy-nat; nft add chain inet istio-proxy-nat output; {apply} --replace-istio && {apply}"
            ),
            0,
            &["mesh-init: 0 changes"],
        ),
        case(
            "legacy_and_nft_both_present",
            format!(
                "iptables-legacy -t nat -A OUTPUT -p tcp --dport 1 -j RETURN; iptables-nft -t nat -A OUTPUT -p tcp --dport 1 -j RETURN; {apply} && {apply}"
            ),
            0,
            &["by netlink", "mesh-init: 0 changes"],
        ),
        case(
            "istio_s_legacy_rules_are_refused",
            format!("iptables-legacy -t nat -N ISTIO_OUTPUT; {apply} --replace-istio"),
            1,
            &["iptables-legacy-save nat ISTIO_OUTPUT", "removed there"],
        ),
        case(
            "rules_before_ours_are_named",
            format!(
                "{apply}; nft add table ip early; \
                 nft add chain ip early out '{{ type nat hook output priority -150 ; }}'; \
                 nft add rule ip early out tcp dport 80 redirect to :9; eval $INIT verify $ARGS"
            ),
            1,
            &["shadowed by: ip early out#1"],
        ),
        case(
            "rules_before_our_jump_are_named",
            format!(
                "for b in iptables-nft iptables-legacy; do {apply} --backend $b; $b -t nat -I OUTPUT -p tcp --dport 80 -j ACCEPT; \
                 eval $INIT verify $ARGS --backend $b && exit 9; $INIT clean --backend $b; $b -t nat -F; done; exit 1"
            ),
            1,
            &["shadowed by: iptables-nft nat OUTPUT#1", "shadowed by: iptables-legacy nat OUTPUT#1"],
        ),
        case(
            "every_backend",
            format!(
                "for b in nft iptables-nft iptables-legacy; do {apply} --backend $b && {apply} --backend $b && $INIT clean --backend $b || exit 9; done"
            ),
            0,
            &["by nft", "by iptables-nft", "by iptables-legacy"],
        ),
        case(
            "a_second_apply_keeps_counters",
            format!(
                "count() {{ case $b in iptables*) $b-save -c -t nat;; *) nft list table inet mesh;; esac | grep -v '^#'; }}; \
                 for b in netlink nft iptables-nft iptables-legacy; do \
                 {apply} --backend $b && ! timeout 1 bash -c '</dev/tcp/192.0.2.1/80' \
                 && before=$(count) && {apply} --backend $b && test \"$before\" = \"$(count)\" \
                 && echo \"$before\" | grep -qE '15001|1:60.*15001' && echo \"$before\" | grep -qE 'packets 1 |^.1:60.' \
                 && $INIT clean --backend $b && echo kept by $b || exit 9; done"
            ),
            0,
            &["kept by netlink", "kept by nft", "kept by iptables-nft", "kept by iptables-legacy"],
        ),
        case("plan_for_tools", "eval $INIT plan $ARGS --json", 0, &["{\"changes\":[\"+ table inet mesh\""]),
        case(
            "verify_for_tools",
            "eval $INIT verify $ARGS --json",
            1,
            &["\"ok\":false", "missing: table inet mesh"],
        ),
        case("counters_for_tools", format!("{apply} && $INIT counters --json"), 0, &["\"packets\":0"]),
        case(
            "render_of_a_family_without_rules",
            "eval $INIT render $ARGS --family v6",
            0,
            &["there are no IPv6 rules without --enable-ipv6"],
        ),
        case(
            "trace_of_a_saved_file",
            "iptables-nft -t nat -A OUTPUT -p tcp --dport 7 -j REDIRECT --to-ports 9; iptables-nft-save > $HERE/saved; \
             $INIT trace --ruleset $HERE/saved --packet 'tcp 1.1.1.1:1 > 2.2.2.2:7 out uid 5'",
            0,
            &["redirected to port 9"],
        ),
        case(
            "trace_of_a_listing",
            format!(
                "{apply} && nft -a list table inet mesh > $HERE/listed; \
                 $INIT trace --ruleset $HERE/listed --packet 'tcp 1.1.1.1:1 > 2.2.2.2:7 out uid 5'"
            ),
            0,
            &["redirected to port 15001"],
        ),
        case("trace_without_a_packet", "$INIT trace", 255, &["--packet says which"]),
        case(
            "trace_of_no_packet",
            "$INIT trace --packet 'tcp here > there'",
            255,
            &["\"here\" is not an address with a port"],
        ),
        case("trace_of_half_a_byte", "$INIT trace --packet hex:450", 255, &["not whole bytes"]),
        case(
            "trace_in_a_missing_file",
            "$INIT trace --ruleset $HERE/none --packet 'tcp 1.1.1.1:1 > 2.2.2.2:2'",
            255,
            &["/none: No such file"],
        ),
        case(
            "trace_live_without_rules",
            "$INIT trace --live --packet 'tcp 1.1.1.1:1 > 2.2.2.2:2'",
            1,
            &["holds no rules of ours"],
        ),
        case(
            "missing_network_namespace",
            "$INIT --network-namespace $HERE/none",
            1,
            &["network namespace", "/none: No such file"],
        ),
        case(
            "another_network_namespace",
            "unshare -m sh -c 'touch $HERE/net; unshare -n mount --bind /proc/self/ns/net $HERE/net; \
             eval $INIT $ARGS --enable-ipv6=false --network-namespace $HERE/net; nft list ruleset | grep -q mesh && exit 9; \
             eval $INIT plan $ARGS --enable-ipv6=false --network-namespace $HERE/net'",
            0,
            &["19 changes", "\n0 changes"],
        ),
        case(
            "transparent_mode_is_undone",
            "eval $INIT $ARGS -m TPROXY --enable-ipv6 && $INIT clean && ! ip rule | grep 0x539 && ! ip -6 rule | grep 0x539 && test -z \"$(ip route show table 133 2>/dev/null)\"",
            0,
            &["nothing of ours is left"],
        ),
        case(
            "render_needs_no_machine",
            "eval $INIT render $ARGS --family v4",
            0,
            &["*nat", ":MESH_OUTPUT - [0:0]", "-A OUTPUT -j MESH_OUTPUT"],
        ),
        case(
            "render_nft",
            "eval $INIT render $ARGS --format nft",
            0,
            &["delete table inet mesh", "tcp dport { 15008, 15020-15021, 15090 }"],
        ),
        case(
            "trace_says_why",
            "eval $INIT trace $ARGS -o 3306 --packet \"'tcp 10.0.0.5:40000 > 10.1.2.3:3306 out uid 1000'\"",
            0,
            &["excluded outbound port", "=> accepted"],
        ),
        case(
            "trace_of_the_kernel_s_rules",
            format!(
                "{apply} && $INIT trace --live --json --packet 'tcp 10.0.0.5:40000 > 10.1.2.3:80 out uid 1000'"
            ),
            0,
            &["\"verdict\":\"redirected\"", "\"port\":15001"],
        ),
        case(
            "trace_of_bytes",
            "eval $INIT trace $ARGS --packet hex:45000028000000004006000001020304050607089c401f9000000000000000005002000000000000",
            0,
            &["tcp 1.2.3.4:40000 > 5.6.7.8:8080 in", "redirected to port 15006"],
        ),
        case("counters_are_shown", format!("{apply} && $INIT counters"), 0, &["packets", "MESH_OUTPUT"]),
        case("unknown_flag", "$INIT --no-such-flag", 255, &["--no-such-flag: no such flag"]),
        case("bad_port", "$INIT -p http", 1, &["envoy-port: \"http\""]),
        case(
            "bad_port_in_the_environment",
            "ISTIO_INBOUND_PORTS=http $INIT",
            1,
            &["ISTIO_INBOUND_PORTS: \"http\""],
        ),
        case(
            "bad_ruleset_file",
            "printf '*nat\\n-A OUTPUT -p frob\\n' > $HERE/bad; $INIT trace --ruleset $HERE/bad --packet 'tcp 1.1.1.1:1 > 2.2.2.2:2'",
            255,
            &["line 2"],
        ),
        case(
            "contradictions_are_refused_when_strict",
            "$INIT plan --enable-ipv6=false --strict -q 80 -o 80",
            1,
            &["is also excluded"],
        ),
        case(
            "help",
            "$INIT --help",
            0,
            &["traffic.sidecar.istio.io/excludeOutboundPorts", "--kube-virt-interfaces"],
        ),
    ]
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1");
    let possible = ["unshare", "ip", "setpriv", "nft", "iptables-legacy", "iptables-nft"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok())
        && nix::unistd::geteuid().is_root();
    let trials = cases().into_iter().map(|case| {
        Trial::test(case.name, move || run(&case).map_err(Failed::from))
            .with_ignored_flag(!(required || possible))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn run(case: &Case) -> Result<(), String> {
    let here = std::env::temp_dir().join(format!("mesh-init-{}-{}", std::process::id(), case.name));
    std::fs::create_dir_all(&here).map_err(|error| error.to_string())?;
    let script = format!("{NETWORK} && {{ {}; }}", case.script);
    let output: Output = Command::new("unshare")
        .args(["-n", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("INIT", env!("CARGO_BIN_EXE_mesh-init"))
        .env("ARGS", INJECTED)
        .env("HERE", &here)
        .env("XTABLES_LOCKFILE", here.join("lock"))
        .output()
        .map_err(|error| error.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let _ = std::fs::remove_dir_all(&here);
    if output.status.code() != Some(case.status) {
        return Err(format!("status {:?}, expected {}\n{said}", output.status.code(), case.status));
    }
    match case.says.iter().find(|says| !said.contains(**says)) {
        Some(missing) => Err(format!("does not say {missing:?}\n{said}")),
        None => Ok(()),
    }
}
