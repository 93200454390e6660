//! A network of a test's own, in which the way between two addresses can be cut: a network namespace with nothing but
//! loopback in it. It takes root and the `ip` tool.

use std::net::Ipv4Addr;
use std::process::Command;

/// Says that a test already runs in a network of its own.
const VARIABLE: &str = "WINDROW_TEST_OWN_NETWORK";

/// Brings loopback up, and looks up local addresses only after the rules that cut them off.
const SET_UP: &str = "ip link set lo up && ip rule add pref 100 lookup local && ip rule del pref 0";

/// The rules that cut come at this place.
const CUT: &str = "10";

/// A network that nobody else is in.
#[derive(Debug, Clone, Copy)]
pub struct OwnNetwork(());

/// Where a test runs.
#[derive(Debug, Clone, Copy)]
pub enum Network {
    /// In a network of its own.
    Own(OwnNetwork),
    /// In everybody's, since it may have no other.
    Shared,
}

impl OwnNetwork {
    /// Runs this very test again in a network of its own, where that is allowed. None when that was done, and the test
    /// passed there; a panic when it failed.
    pub fn enter(test: &str) -> Option<Network> {
        if std::env::var_os(VARIABLE).is_some() {
            return Some(Network::Own(Self(())));
        }
        let tried = within(SET_UP).output();
        if !tried.as_ref().is_ok_and(|tried| tried.status.success()) {
            println!("no network of its own, so nothing is cut off here: {tried:?}");
            return Some(Network::Shared);
        }
        let mut again = within(&format!("{SET_UP} && exec \"$@\""));
        again.arg("sh").arg(std::env::current_exe().unwrap());
        again.args(["--exact", test, "--nocapture"]).env(VARIABLE, "1");
        assert!(again.status().unwrap().success(), "{test} failed in its own network");
        None
    }

    /// Lets nothing pass between `one` and each of `others`. Connections stay open, and silent.
    pub fn cut_off(self, one: Ipv4Addr, others: &[Ipv4Addr]) {
        rules("add", one, others);
    }

    /// Mends what was cut by the same words.
    pub fn mend(self, one: Ipv4Addr, others: &[Ipv4Addr]) {
        rules("del", one, others);
    }
}

fn rules(verb: &str, one: Ipv4Addr, others: &[Ipv4Addr]) {
    for other in others {
        for (from, to) in [(one, *other), (*other, one)] {
            let mut rule = Command::new("ip");
            rule.args(["rule", verb, "from", &from.to_string(), "to", &to.to_string()]);
            assert!(rule.args(["blackhole", "pref", CUT]).status().unwrap().success(), "{rule:?}");
        }
    }
}

fn within(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script]);
    command
}
