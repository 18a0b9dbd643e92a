//! The programs that are measured: ours, and any other kube-proxy as its peer.

use std::path::PathBuf;

use testkit::cluster::{CLUSTER_CIDR, NODE};

/// Whose figure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Series {
    /// This project's program.
    Ours,
    /// The other program.
    Peer,
    /// What ours can't beat: the kernel alone, or a connection without a Service.
    Floor,
    /// The same for the peer, where it is measured beside it.
    PeerFloor,
}

impl Series {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Peer, Self::Floor, Self::PeerFloor];

    /// Its name in tables and files.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "kube-proxy",
            Self::Peer => "peer",
            Self::Floor => "floor",
            Self::PeerFloor => "floor beside the peer",
        }
    }
}

/// A program and how it is started.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) series: Series,
    pub(crate) program: PathBuf,
    /// `--proxy-mode`.
    pub(crate) mode: String,
    /// What its user adds. A flag here takes the place of ours.
    pub(crate) extra: Vec<String>,
}

impl Contender {
    /// The arguments with which it serves the cluster behind this API server. They are upstream's flags, which any
    /// drop-in replacement has.
    pub(crate) fn arguments(&self, master: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        let common = [
            ("--master", master),
            ("--hostname-override", NODE),
            ("--proxy-mode", &self.mode),
            ("--cluster-cidr", CLUSTER_CIDR),
        ];
        // The log of ours has more to tell; that of others isn't read, so nothing makes them write one.
        let verbosity = (self.series == Series::Ours).then_some(("-v", "2"));
        for (flag, value) in common.into_iter().chain(verbosity) {
            let is_flag = |extra: &String| extra == flag || extra.starts_with(&format!("{flag}="));
            if !self.extra.iter().any(is_flag) {
                arguments.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(series: Series, extra: &str) -> String {
        let extra = extra.split_whitespace().map(str::to_owned).collect();
        let contender = Contender { series, program: "kp".into(), mode: "nftables".into(), extra };
        contender.arguments("http://x").join(" ")
    }

    #[test]
    fn the_users_flags_win() {
        assert_eq!(
            arguments(Series::Peer, ""),
            "--master http://x --hostname-override node-1 --proxy-mode nftables \
             --cluster-cidr 10.244.0.0/16,fd00:10:244::/47"
        );
        let other_mode = arguments(Series::Peer, "--proxy-mode=iptables --cluster-cidr 10.244.0.0/16 -x");
        assert_eq!(
            other_mode,
            "--master http://x --hostname-override node-1 --proxy-mode=iptables --cluster-cidr 10.244.0.0/16 -x"
        );
        assert!(arguments(Series::Ours, "").ends_with(" -v 2"));
    }
}
