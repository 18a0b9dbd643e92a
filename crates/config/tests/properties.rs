//! Any mixture of fields: reading never panics, and what is written means the same when it is read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use config::{CommandLine, Config, ConfigError, Mode, ModeSupport, Parsed, load};
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Fields with values that are edges, sound or not, as JSON.
const FIELDS: [(&str, &[&str]); 40] = [
    ("bindAddress", &["\"\"", "\"::\"", "\"10.0.0.1\"", "\"010.0.0.1\"", "\"node\"", "\"::ffff:10.0.0.1\""]),
    ("bindAddressHardFail", &["true", "false", "null", "1"]),
    ("clientConnection.acceptContentTypes", &["\"\"", "\"application/json\"", "\"text/plain\""]),
    ("clientConnection.burst", &["0", "1", "-1", "2147483647", "1e3"]),
    ("clientConnection.contentType", &["\"\"", "\"application/json\"", "\"a: b\""]),
    ("clientConnection.kubeconfig", &["\"/k\"", "\" # no comment\"", "\"'\"", "\"a\\nb\""]),
    ("clientConnection.qps", &["0", "-1", "0.1", "5.5", "1e30", "\"x\""]),
    ("clusterCIDR", &["\"\"", "\"10.0.0.0/8\"", "\"10.0.0.0/8,fd00::/8\"", "\"10.0.0.0/8,\"", "\"x\""]),
    ("configSyncPeriod", &["\"0s\"", "\"1ns\"", "\"-1h\"", "\"1.5h\"", "\"2562047h\"", "null", "5"]),
    ("conntrack.maxPerCore", &["null", "0", "7", "-7"]),
    ("conntrack.min", &["null", "0", "7"]),
    ("conntrack.tcpCloseWaitTimeout", &["null", "\"0s\"", "\"1ms\"", "\"1h1ns\""]),
    ("conntrack.tcpEstablishedTimeout", &["null", "\"0s\"", "\"-1s\""]),
    ("conntrack.udpTimeout", &["\"0s\"", "\"10s\""]),
    ("detectLocal.bridgeInterface", &["\"\"", "\"cni0\"", "\"*\"", "\"0123456789abcdef\""]),
    ("detectLocal.interfaceNamePrefix", &["\"\"", "\"veth\"", "\"null\""]),
    ("detectLocalMode", &["\"\"", "\"NodeCIDR\"", "\"BridgeInterface\"", "\"InterfaceNamePrefix\"", "\"x\""]),
    (
        "featureGates",
        &["{}", "{\"AllAlpha\": true}", "{\"Other\": true}", "{\"WinDSR\": false}", "{\"yes\": false}"],
    ),
    ("healthzBindAddress", &["\"\"", "\"::1\"", "\"1.2.3.4:0\"", "\"[::]:80\"", "\"x:1\""]),
    ("hostnameOverride", &["\"\"", "\" A \"", "\"yes\"", "\"1.5\"", "\" \""]),
    ("iptables.localhostNodePorts", &["null", "false", "true"]),
    ("iptables.masqueradeAll", &["true", "false"]),
    ("iptables.masqueradeBit", &["null", "0", "31", "32"]),
    ("iptables.minSyncPeriod", &["\"0s\"", "\"30s\"", "\"2h\""]),
    ("iptables.syncPeriod", &["\"0s\"", "\"3h\"", "\"1ms\""]),
    ("ipvs.excludeCIDRs", &["null", "[]", "[\"10.0.0.0/8\"]", "[\"x\"]", "[null]"]),
    ("ipvs.syncPeriod", &["\"0s\"", "\"1m\""]),
    ("ipvs.tcpTimeout", &["\"0s\"", "\"1ns\"", "\"-1ns\""]),
    ("logging.flushFrequency", &["0", "1", "\"1s\"", "\"0s\"", "-1"]),
    ("logging.format", &["\"\"", "\"json\"", "\"xml\""]),
    ("logging.options.text.infoBufferSize", &["0", "\"1Ki\"", "\"1.5\"", "\"x\""]),
    ("logging.verbosity", &["0", "4", "4294967295", "-1"]),
    ("logging.vmodule", &["[]", "[{\"filePattern\": \"*\", \"verbosity\": 3}]", "[{\"verbosity\": 3}]"]),
    ("metricsBindAddress", &["\"0.0.0.0\"", "\"\"", "\"x\""]),
    ("mode", &["\"\"", "\"nftables\"", "\"iptables\"", "\"ipvs\"", "\"userspace\"", "\"x\""]),
    ("nftables.masqueradeBit", &["null", "0", "31", "-1"]),
    (
        "nodePortAddresses",
        &["null", "[]", "[\"primary\"]", "[\"0.0.0.0/0\", \"::/0\"]", "[\"primary\", \"x\"]"],
    ),
    ("oomScoreAdj", &["null", "0", "1000", "-1001", "1.5"]),
    ("tracing.endpoint", &["null", "\"\"", "\"localhost:1\"", "\"unix:///x\"", "\"http://x\""]),
    ("tracing.samplingRatePerMillion", &["null", "0", "1000000", "1000001", "-1"]),
];

/// A file with these fields, as JSON, which is YAML.
fn file(fields: &[(usize, Index)]) -> String {
    let mut root = serde_json::json!({
        "apiVersion": config::v1alpha1::API_VERSION,
        "kind": config::v1alpha1::KIND,
    });
    for (field, value) in fields {
        let (path, values) = FIELDS[*field];
        let mut place = &mut root;
        for key in path.split('.') {
            place = &mut place[key];
        }
        *place = serde_json::from_str(values[value.index(values.len())]).unwrap();
    }
    root.to_string()
}

fn read(text: &str) -> Result<Config, ConfigError> {
    let Ok(Parsed::Run(command_line)) = CommandLine::parse(["--config=f".to_owned()]) else {
        panic!("arguments")
    };
    let modes = [Mode::NfTables, Mode::IpTables, Mode::Ipvs].map(ModeSupport::usable);
    load(&command_line, Some(Ok(text.to_owned())), &modes).config
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_means_the_same_when_it_is_read(
        fields in proptest::collection::vec((0..FIELDS.len(), any::<Index>()), 0..8),
    ) {
        let Ok(config) = read(&file(&fields)) else { return Ok(()) };
        let written = config.to_yaml();
        prop_assert_eq!(&read(&written).unwrap(), &config, "{}", written);
        prop_assert_eq!(read(&written).unwrap().to_yaml(), written);
        prop_assert_eq!(&read(&config.to_json().to_string()).unwrap(), &config);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        let head = format!("apiVersion: {}\nkind: {}\n", config::v1alpha1::API_VERSION, config::v1alpha1::KIND);
        drop(read(&text));
        drop(read(&(head + &text)));
    }

    #[test]
    fn no_arguments_make_it_panic(
        arguments in proptest::collection::vec(
            prop_oneof!["--[a-z_-]{0,12}=?.{0,8}", "-.{0,4}", ".{0,8}", select(vec![
                "--v=1".to_owned(), "--config=".to_owned(), "--feature-gates".to_owned(), "--vmodule".to_owned(),
                "--healthz-port=-1".to_owned(), "--nodeport-addresses".to_owned(), "--".to_owned(),
            ])],
            0..6,
        ),
    ) {
        if let Ok(Parsed::Run(command_line)) = CommandLine::parse(arguments) {
            drop(command_line.values());
            drop(load(&command_line, command_line.config().map(|_| Ok(String::new())), &[]).config);
        }
    }
}
