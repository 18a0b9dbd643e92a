use std::time::Duration;

use super::*;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn parse(line: &str) -> CommandLine {
    match CommandLine::parse(words(line)) {
        Ok(Parsed::Run(command_line)) => *command_line,
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn refused(line: &str, because: &str) {
    let UsageError(text) = CommandLine::parse(words(line)).unwrap_err();
    let (usage, error) = text.rsplit_once("\n\n").unwrap();
    assert!(usage.contains("Usage: kube-proxy [flags]"), "{usage}");
    assert_eq!(error, format!("Error: {because}\n"));
}

fn value(line: &str, flag: &str) -> String {
    parse(line).values().into_iter().find(|(name, _)| *name == flag).unwrap().1
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
    let names: std::collections::BTreeSet<_> = flags::all().map(|flag| flag.name).collect();
    assert_eq!(names.len(), flags::all().count(), "a name is used twice");
}

#[test]
fn fields_and_their_flags_agree_on_the_path() {
    let paths = leaves(&KubeProxyConfiguration::defaults().write());
    for flag in flags::all() {
        let MapsTo::Field(path) = flag.maps_to else { continue };
        let omitted_when_empty = path.ends_with("splitStream")
            || path.starts_with("ebpf.")
            || path.starts_with("serviceMetrics.")
            || path.starts_with("serviceProxying.")
            || path.starts_with("connectionReset.")
            || path.starts_with("canary.")
            || ["featureGates", "logging.vmodule", "inspectSocket", "allowedExternalIPs", "startupTaint"]
                .contains(&path);
        assert!(paths.contains_key(path) || omitted_when_empty, "--{}: {path}", flag.name);
    }
}

#[test]
fn a_value_goes_where_the_flag_says() {
    for flag in flags::all() {
        let MapsTo::Field(path) = flag.maps_to else { continue };
        let value = match flag.target {
            Target::Bool(_) => {
                if default(flag) == "true" {
                    "false"
                } else {
                    "true"
                }
            }
            Target::Int(_) | Target::Level(_) | Target::Float(_) | Target::Quantity(_) => "3",
            Target::Duration(_) => "3s",
            Target::Text(_) => "some-text",
            Target::Ip(_) => "10.0.0.3",
            Target::Listener(_) => "10.0.0.3:3",
            Target::List(_) => "10.0.0.0/8",
            Target::Gates(_) => "LoggingAlphaOptions=true",
            Target::Vmodule(_) => "file=3",
            Target::Version(_) => "false",
        };
        let command_line = parse(&format!("--{}={value}", flag.name));
        let mut given = Given { file: KubeProxyConfiguration::defaults(), own: OwnFlags::default() };
        // The shared values go to the section of the mode.
        given.file.mode = "nftables".to_owned();
        let before = leaves(&given.file.write());
        command_line.apply(&mut given, |_| true);
        let after = leaves(&given.file.write());
        let changed: Vec<_> = after.iter().filter(|(path, value)| before.get(*path) != Some(value)).collect();
        assert_eq!(
            changed.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
            [path],
            "--{}",
            flag.name
        );
    }
}

#[test]
fn names_may_have_underscores_and_values_keep_them() {
    assert_eq!(value("--proxy_mode=a_b", "proxy-mode"), "a_b");
    assert_eq!(value("--proxy_mode a_b", "proxy-mode"), "a_b");
    assert_eq!(value("--hostname-override --under_score", "hostname-override"), "--under_score");
    assert!(parse("--init_only").own.init_only);
}

#[test]
fn booleans_stand_alone_or_have_a_value_after_an_equals_sign() {
    assert!(parse("--cleanup").own.cleanup);
    assert!(!parse("--cleanup --cleanup=false").own.cleanup);
    assert!(parse("--cleanup=T").own.cleanup);
    let UsageError(text) = CommandLine::parse(words("--cleanup false")).unwrap_err();
    assert_eq!(text, "Error: \"kube-proxy\" does not take any arguments, got [\"false\"]\n");
}

#[test]
fn the_level_has_a_short_form() {
    for line in ["-v 4", "-v=4", "-v4", "--v 4", "--v=4"] {
        assert_eq!(value(line, "v"), "4", "{line}");
    }
}

#[test]
fn numbers_may_be_negative_and_have_gos_prefixes() {
    assert_eq!(value("--oom-score-adj -999", "oom-score-adj"), "-999");
    assert_eq!(value("--oom-score-adj=0x10", "oom-score-adj"), "16");
    assert_eq!(value("--conntrack-min=0b1", "conntrack-min"), "1");
    assert_eq!(value("--conntrack-min=0o7", "conntrack-min"), "7");
}

#[test]
fn the_last_of_a_repeated_flag_counts_but_lists_and_maps_collect() {
    assert_eq!(value("--master http://a --master http://b", "master"), "http://b");
    let line = "--nodeport-addresses 10.0.0.0/8,fd00::/64 --nodeport-addresses=192.168.0.0/16";
    assert_eq!(value(line, "nodeport-addresses"), "[10.0.0.0/8,fd00::/64,192.168.0.0/16]");
    let mut given = Given { file: KubeProxyConfiguration::defaults(), own: OwnFlags::default() };
    parse("--feature-gates A=true,B=false --feature-gates C=true,A=false").apply(&mut given, |_| true);
    let gates: Vec<_> = given.file.feature_gates.iter().map(|(name, on)| (name.as_str(), *on)).collect();
    assert_eq!(gates, [("A", false), ("B", false), ("C", true)]);
}

#[test]
fn an_empty_address_says_nothing() {
    for flag in ["bind-address", "healthz-bind-address", "metrics-bind-address"] {
        let mut given = Given { file: KubeProxyConfiguration::defaults(), own: OwnFlags::default() };
        parse(&format!("--{flag}=")).apply(&mut given, |_| true);
        assert_eq!(given.file, KubeProxyConfiguration::defaults());
    }
}

#[test]
fn mistakes_are_told_after_the_usage() {
    refused("--unknown", "unknown flag: --unknown");
    refused("--proxy-mod=x", "unknown flag: --proxy-mod (did you mean --proxy-mode?)");
    refused("-x", "unknown flag: -x");
    refused("--master", "flag needs an argument: --master");
    refused("-v", "flag needs an argument: --v");
    refused(
        "--oom-score-adj=x --oom-score-adj=1",
        "invalid argument \"x\" for \"--oom-score-adj\" flag: want a whole number of at most 32 bits",
    );
    refused(
        "--config-sync-period=900",
        "invalid argument \"900\" for \"--config-sync-period\" flag: invalid duration \"900\": want a number with a \
         unit (ns, us, ms, s, m, h) such as \"30s\"",
    );
    refused(
        "--bind-address=localhost",
        "invalid argument \"localhost\" for \"--bind-address\" flag: \"localhost\" is not an IP address",
    );
    refused(
        "--healthz-bind-address=localhost:1",
        "invalid argument \"localhost:1\" for \"--healthz-bind-address\" flag: want an IP address or IP:port",
    );
    refused("--cleanup=maybe", "invalid argument \"maybe\" for \"--cleanup\" flag: want true or false");
    refused(
        "--feature-gates=A",
        "invalid argument \"A\" for \"--feature-gates\" flag: want NAME=true or NAME=false",
    );
    refused("--vmodule=a", "invalid argument \"a\" for \"--vmodule\" flag: want PATTERN=LEVEL");
    refused("-v=-1", "invalid argument \"-1\" for \"--v\" flag: want a whole number that is not negative");
    refused(
        "--version=v9.9.9",
        "invalid argument \"v9.9.9\" for \"--version\" flag: \"v9.9.9\" does not match the built-in version v1.36.1",
    );
}

#[test]
fn arguments_that_are_no_flags_are_refused_without_the_usage() {
    let UsageError(text) = CommandLine::parse(words("start --cleanup -- --now")).unwrap_err();
    assert_eq!(text, "Error: \"kube-proxy\" does not take any arguments, got [\"start\", \"--now\"]\n");
    assert!(matches!(CommandLine::parse([String::new()]), Ok(Parsed::Run(_))));
}

#[test]
fn help_lists_every_flag_that_is_not_deprecated() {
    let Ok(Parsed::Print(help)) = CommandLine::parse(words("-h")) else { panic!("no help") };
    assert_eq!(CommandLine::parse(words("--help")), Ok(Parsed::Print(help.clone())));
    for flag in flags::all() {
        let listed = help.lines().any(|line| {
            line.trim_start().trim_start_matches("-v, ").split([' ', '[']).next()
                == Some(&format!("--{}", flag.name))
        });
        assert_eq!(listed, flag.deprecated.is_none(), "--{}\n{help}", flag.name);
    }
    for group in flags::groups() {
        assert!(help.contains(&format!("{}:\n", group.title)), "{}", group.title);
    }
}

#[test]
fn the_version_is_printed_before_anything_is_loaded() {
    for line in ["--version", "--version=true", "--version --config /missing", "start --version"] {
        let Ok(Parsed::Print(text)) = CommandLine::parse(words(line)) else { panic!("{line}") };
        assert!(text.starts_with("Kubernetes v1.36.1"), "{text}");
    }
    assert_eq!(parse("--version=false").version(), version::built_in());
    assert_eq!(parse("--version=v1.36.1-mine").version(), "v1.36.1-mine");
}

#[test]
fn deprecated_flags_are_told() {
    assert_eq!(
        parse("--healthz-port=1 --cleanup").deprecations(),
        ["Flag --healthz-port has been deprecated, use --healthz-bind-address"]
    );
}

#[test]
fn what_to_do_has_an_order() {
    assert_eq!(parse("").action(), Action::Serve);
    assert_eq!(parse("--init-only").action(), Action::InitOnly);
    assert_eq!(parse("--init-only --cleanup").action(), Action::Cleanup);
    assert_eq!(parse("--hand-over=90s").action(), Action::HandOver(Duration::from_secs(90)));
    assert_eq!(parse("--hand-over=-1s").action(), Action::HandOver(Duration::ZERO));
    assert_eq!(parse("--hand-over=0").action(), Action::Serve);
    assert_eq!(parse("--cleanup --write-config-to=/f").action(), Action::WriteConfig(Path::new("/f")));
}

#[test]
fn all_flags_have_values_sorted_by_name() {
    let values = parse("--conntrack-tcp-timeout-established=90m").values();
    assert!(values.is_sorted());
    let value = |name| values.iter().find(|(known, _)| *known == name).unwrap().1.as_str();
    assert_eq!(value("conntrack-tcp-timeout-established"), "1h30m0s");
    assert_eq!(value("kube-api-qps"), "5");
    assert_eq!(value("healthz-bind-address"), "0.0.0.0:10256");
    assert_eq!(value("healthz-port"), "10256");
    assert_eq!(value("nodeport-addresses"), "[]");
    assert_eq!(value("feature-gates"), "");
    assert_eq!(value("version"), "false");
    assert_eq!(value("log-text-split-stream"), "false");
    assert_eq!(value("iptables-localhost-nodeports"), "true");
}
