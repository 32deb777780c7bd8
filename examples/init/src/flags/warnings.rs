//! Flags that are accepted and do nothing, or not what they seem to do.

use mesh_netfilter::backend::Kind as Backend;

use super::{Command, Flags};

impl Flags {
    /// One line for each flag that has no effect here, with the reason.
    pub fn warnings(&self) -> Vec<String> {
        let by_iptables = matches!(self.backend, Some(Backend::Iptables(_)));
        let chosen = !self.force_iptables_binary.is_empty()
            && self
                .backend
                .is_some_and(|kind| kind.to_string() != format!("iptables-{}", self.force_iptables_binary));
        let pure = self.command == Command::Render || self.command == Command::Trace && !self.live;
        let cases = [
            (self.cni_mode, "cni-mode", "nothing of the file system is used, so nothing has to be hidden"),
            (!self.reconcile, "reconcile", "apply always reconciles"),
            (self.native_nftables && by_iptables, "native-nftables", "another flag asks for iptables"),
            (chosen, "force-iptables-binary", "--backend names another"),
            (
                self.command == Command::Apply && self.skip_rule_apply && !self.run_validation,
                "skip-rule-apply",
                "without --run-validation there is nothing left to do",
            ),
            (
                pure && !self.network_namespace.is_empty(),
                "network-namespace",
                "render and trace do not look at the machine",
            ),
            (self.dual_stack && self.enable_ipv6.is_some(), "dual-stack", "--enable-ipv6 decides"),
        ];
        let said = cases.into_iter().filter(|(applies, ..)| *applies);
        said.map(|(_, flag, why)| format!("{}: has no effect: {why}", self.place(flag))).collect()
    }
}
