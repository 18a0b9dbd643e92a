//! The same beside the programs themselves, as Debian packages them: firewalld, ufw and Docker's daemon. Each has copies of its files, and what it runs
//! sees its own `/run`.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use lab::Host;
use lab::proxy::wait_until;
use tempfile::TempDir;
use testkit::cluster::{Flavour, ProxyMode};

use super::{Beside, rules_of_iptables, the_contract_holds};

/// firewalld waits for a policy daemon that is not there before it begins.
const START: Duration = Duration::from_mins(3);

/// How a program is run on a node, as lines of a shell. `$D` is a folder of its own.
#[derive(Clone, Copy)]
struct Recipe {
    /// Makes copies of what it would change on this machine.
    copies: &'static str,
    /// Has it find them.
    finds: &'static str,
    /// What stays at work.
    daemon: &'static str,
    /// Succeeds once it is ready.
    is_ready: &'static str,
    /// What an operator sets, as docs/cnis.md says.
    settings: &'static str,
    /// Has it write its rules again.
    again: &'static str,
    /// A table of its own.
    table: Option<&'static str>,
}

const UFW: Recipe = Recipe {
    copies: "cp -a /etc/ufw $D/etc; cp /etc/default/ufw $D/default",
    finds: "mount --bind $D/etc /etc/ufw; mount --bind $D/default /etc/default/ufw",
    daemon: "",
    is_ready: "true",
    settings: "ufw default allow routed; ufw --force enable",
    again: "ufw reload",
    table: None,
};

const FIREWALLD: Recipe = Recipe {
    copies: "cp -a /etc/firewalld $D/etc",
    finds: "true",
    daemon: "dbus-daemon --config-file=/usr/share/dbus-1/system.conf --nofork --nopidfile --address=$DBUS_SYSTEM_BUS_ADDRESS & \
             while [ ! -S $D/bus ]; do sleep 0.1; done; \
             exec firewalld --nofork --nopid --system-config=$D/etc --log-file $D/own.log",
    is_ready: "firewall-cmd --state",
    settings: "true",
    again: "firewall-cmd --reload",
    table: Some("inet firewalld"),
};

const DOCKER: Recipe = Recipe {
    copies: "mkdir $D/data",
    finds: "true",
    daemon: "exec /usr/sbin/dockerd --data-root $D/data --exec-root /run/docker --pidfile /run/docker.pid --host unix://$D/socket --storage-driver vfs",
    is_ready: "docker --host unix://$D/socket info",
    settings: "for w in -i -o; do for f in iptables ip6tables; do $f -N DOCKER-USER 2>/dev/null || true; $f -I DOCKER-USER $w pod+ -j ACCEPT; done; done",
    again: "true",
    table: None,
};

/// A program that was started.
struct Program {
    recipe: Recipe,
    folder: TempDir,
    daemon: Option<Child>,
}

impl Program {
    fn new(recipe: Recipe) -> Self {
        Self { recipe, folder: TempDir::new().unwrap(), daemon: None }
    }

    /// Lines of a shell on the node, in which the program's files are its own.
    fn script(&self, lines: &str) -> String {
        let folder = self.folder.path().display();
        format!(
            "set -e; D={folder}; export D DBUS_SYSTEM_BUS_ADDRESS=unix:path=$D/bus; \
             mount -t tmpfs tmpfs /run; mkdir -p /run/lock /run/dbus; {}; {lines}",
            self.recipe.finds
        )
    }

    fn shell(&self, node: &Host, lines: &str) -> Result<String, lab::LabError> {
        node.exec("unshare", &["--mount", "--propagation=private", "sh", "-c", &self.script(lines)])
    }

    fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("log") + &read("own.log")
    }

    fn start_daemon(&mut self, node: &Host) {
        let log = File::create(self.folder.path().join("log")).unwrap();
        let script = self.script(self.recipe.daemon);
        let mut command = node.command("unshare");
        // All that it starts ends with it.
        command.args([
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            &script,
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }
}

impl Beside for Program {
    fn start(&mut self, node: &Host) {
        let folder = self.folder.path().display();
        node.exec("sh", &["-c", &format!("D={folder}; {}", self.recipe.copies)]).unwrap();
        if !self.recipe.daemon.is_empty() {
            self.start_daemon(node);
        }
        let is_ready = wait_until(START, || self.shell(node, self.recipe.is_ready).is_ok());
        assert!(is_ready, "it does not start:\n{}", self.log());
        self.shell(node, self.recipe.settings).unwrap();
    }

    fn start_again(&mut self, node: &Host) {
        self.shell(node, self.recipe.again).unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    fn rules(&self, node: &Host) -> Vec<String> {
        let table = self.recipe.table.into_iter().map(|table| {
            let words: Vec<&str> = ["-s", "list", "table"].into_iter().chain(table.split(' ')).collect();
            node.exec("nft", &words).unwrap()
        });
        rules_of_iptables(node).into_iter().chain(table).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

#[test]
#[ignore = "part of make neighbours"]
fn ufw_in_mode_nftables() {
    the_contract_holds(ProxyMode::Nftables, &mut Program::new(UFW));
}

#[test]
#[ignore = "part of make neighbours"]
fn ufw_in_mode_iptables() {
    the_contract_holds(ProxyMode::Iptables(Flavour::Nft), &mut Program::new(UFW));
}

#[test]
#[ignore = "part of make neighbours"]
fn firewalld_in_mode_nftables() {
    the_contract_holds(ProxyMode::Nftables, &mut Program::new(FIREWALLD));
}

#[test]
#[ignore = "part of make neighbours"]
fn firewalld_in_mode_iptables() {
    the_contract_holds(ProxyMode::Iptables(Flavour::Nft), &mut Program::new(FIREWALLD));
}

#[test]
#[ignore = "part of make neighbours"]
fn docker_in_mode_nftables() {
    the_contract_holds(ProxyMode::Nftables, &mut Program::new(DOCKER));
}

#[test]
#[ignore = "part of make neighbours"]
fn docker_in_mode_iptables() {
    the_contract_holds(ProxyMode::Iptables(Flavour::Nft), &mut Program::new(DOCKER));
}
