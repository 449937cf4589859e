use expect_test::{Expect, expect};

use super::*;

/// Serves a call of `NAME=VALUE` words and prints exit code and output.
#[track_caller]
fn check(env: &str, config: &str, expected: Expect) {
    let env = env.split_whitespace().map(|word| {
        let (name, value) = word.split_once('=').unwrap();
        (format!("CNI_{name}"), value.to_owned())
    });
    let mut output = Vec::new();
    let code = serve(config.as_bytes(), &mut output, env);
    expected.assert_eq(&format!("{code} {}", String::from_utf8(output).unwrap().trim_end()));
}

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"muster","type":"muster-cni",
    "podNetwork":"/nonexistent/pod-network.json","addresses":"/nonexistent/ips"}"#;

#[test]
fn versions_are_told_without_a_configuration() {
    check(
        "COMMAND=VERSION",
        "",
        expect![[
            r#"0 {"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        ]],
    );
}

#[test]
fn a_malformed_call_is_refused_with_its_reason() {
    let whole = "COMMAND=ADD CONTAINERID=c1 NETNS=/x IFNAME=eth0 PATH=/p";
    check(
        whole,
        "{",
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":6,"details":"","msg":"the configuration does not decode: EOF while parsing an object at line 1 column 1"}"#
        ]],
    );
    check(
        whole,
        r#"{"cniVersion":"9.9","name":"x"}"#,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":1,"details":"config is \"9.9\", plugin supports [\"0.3.0\" \"0.3.1\" \"0.4.0\" \"1.0.0\" \"1.1.0\"]","msg":"incompatible CNI versions"}"#
        ]],
    );
    check(
        whole,
        r#"{"cniVersion":"0.4.0"}"#,
        expect![[r#"1 {"cniVersion":"0.4.0","code":7,"details":"","msg":"missing network name"}"#]],
    );
    check(
        "COMMAND=FLY",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"unknown CNI_COMMAND: FLY"}"#
        ]],
    );
    check(
        "COMMAND=ADD CONTAINERID=../x NETNS=/x IFNAME=eth0 PATH=/p",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"../x","msg":"invalid characters in containerID"}"#
        ]],
    );
    check(
        "COMMAND=ADD CONTAINERID=c NETNS=/x IFNAME=a/b PATH=/p",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"interface name contains / or : or whitespace characters"}"#
        ]],
    );
    check(
        "COMMAND=ADD CONTAINERID=c IFNAME=eth0 PATH=/p",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"required env variables [CNI_NETNS] missing"}"#
        ]],
    );
}

#[test]
fn without_a_pod_network_the_runtime_shall_try_later() {
    check(
        "COMMAND=ADD CONTAINERID=c1 NETNS=/x IFNAME=eth0 PATH=/p",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":11,"details":"","msg":"no pod network yet: /nonexistent/pod-network.json is not there"}"#
        ]],
    );
    check(
        "COMMAND=STATUS PATH=/p",
        &CONFIG.replace("1.0.0", "1.1.0"),
        expect![[
            r#"1 {"cniVersion":"1.1.0","code":50,"details":"","msg":"no pod network yet: /nonexistent/pod-network.json is not there"}"#
        ]],
    );
}

#[test]
fn host_ends_have_names_that_the_kernel_takes() {
    let name = wire::host_name(&"f".repeat(64), "eth0");
    assert_eq!(name.len(), 15);
    assert_ne!(name, wire::host_name(&"f".repeat(64), "eth1"));
    assert_ne!(wire::host_name("ab", "c"), wire::host_name("a", "bc"));
}

/// What the CNI project's own tests ask of every plugin's front: which parameters a command needs,
/// what it refuses, with which code and in which words. Each case changes a good call.
struct Case {
    command: &'static str,
    /// Parameters set anew; empty ones are left out.
    change: &'static [(&'static str, &'static str)],
    config: &'static str,
}

impl Case {
    fn of(command: &'static str) -> Self {
        Self { command, change: &[], config: r#"{"name": "test", "cniVersion": "1.1.0"}"# }
    }

    /// Code, message and details of the refusal; `None` when it is none of the front's.
    fn refused(&self) -> Option<(u64, String, String)> {
        let good = [
            ("COMMAND", self.command),
            ("CONTAINERID", "some-container-id"),
            ("NETNS", "/nonexistent/netns"),
            ("IFNAME", "eth0"),
            ("ARGS", "some;extra;args"),
            ("PATH", "/some/cni/path"),
        ];
        let mut env: BTreeMap<&str, &str> = good.into_iter().collect();
        env.extend(self.change.iter().copied());
        let env = env.into_iter().filter(|(_, value)| !value.is_empty());
        let env = env.map(|(name, value)| (format!("CNI_{name}"), value.to_owned()));
        match Request::parse(&env.collect(), self.config.as_bytes()) {
            Ok(_) => None,
            Err(failure) => {
                let told = failure.render("1.1.0");
                let text = |key: &str| told[key].as_str().unwrap().to_owned();
                Some((told["code"].as_u64().unwrap(), text("msg"), text("details")))
            }
        }
    }
}

#[track_caller]
fn refuses(case: &Case, code: u64, message: &str, details: &str) {
    assert_eq!(case.refused(), Some((code, message.to_owned(), details.to_owned())));
}

#[test]
fn each_command_needs_its_parameters() {
    let attached = ["CONTAINERID", "NETNS", "IFNAME", "PATH"];
    for (command, needed) in [
        ("ADD", &attached[..]),
        ("CHECK", &attached[..]),
        ("DEL", &["CONTAINERID", "IFNAME", "PATH"][..]),
        ("GC", &["PATH"][..]),
        ("STATUS", &["PATH"][..]),
        ("VERSION", &[][..]),
    ] {
        let config = r#"{"name": "t", "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}"#;
        let all: [&'static [(&str, &str)]; 5] = [
            &[("CONTAINERID", "")],
            &[("NETNS", "")],
            &[("IFNAME", "")],
            &[("ARGS", "")],
            &[("PATH", "")],
        ];
        for change in all {
            let name = change[0].0;
            let case = Case { change, config, ..Case::of(command) };
            let missing = format!("required env variables [CNI_{name}] missing");
            let wanted = needed.contains(&name).then_some((4, missing, String::new()));
            assert_eq!(case.refused(), wanted, "{command} without {name}");
        }
    }
    let change = &[("NETNS", ""), ("IFNAME", ""), ("PATH", "")];
    let words = "required env variables [CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
    refuses(&Case { change, ..Case::of("ADD") }, 4, words, "");
    refuses(&Case { change, ..Case::of("CHECK") }, 4, words, "");
    refuses(&Case::of(""), 4, "required env variables [CNI_COMMAND] missing", "");
    refuses(&Case::of("NOPE"), 4, "unknown CNI_COMMAND: NOPE", "");
}

#[test]
fn malformed_names_are_refused() {
    type Variables = &'static [(&'static str, &'static str)];
    let change = &[("CONTAINERID", "some-%%container-id")];
    let words = "invalid characters in containerID";
    refuses(&Case { change, ..Case::of("ADD") }, 4, words, "some-%%container-id");
    let dots = "interface name is . or ..";
    let inside = "interface name contains / or : or whitespace characters";
    let names: [(Variables, &str, &str); 6] = [
        (
            &[("IFNAME", "1234567890123456")],
            "interface name is too long",
            "interface name should be less than 16 characters",
        ),
        (&[("IFNAME", ".")], dots, ""),
        (&[("IFNAME", "..")], dots, ""),
        (&[("IFNAME", "test/test")], inside, ""),
        (&[("IFNAME", "test:test")], inside, ""),
        (&[("IFNAME", "test test")], inside, ""),
    ];
    for (change, message, details) in names {
        refuses(&Case { change, ..Case::of("ADD") }, 4, message, details);
    }
    for command in ["ADD", "CHECK", "GC"] {
        let config = r#"{"cniVersion": "1.1.0", "name": "te%%st"}"#;
        let words = "invalid characters found in network name";
        refuses(&Case { config, ..Case::of(command) }, 7, words, "te%%st");
        let config = r#"{"cniVersion": "1.1.0"}"#;
        refuses(&Case { config, ..Case::of(command) }, 7, "missing network name", "");
    }
}

#[test]
fn versions_that_do_not_fit_are_refused() {
    let spoken = r#"plugin supports ["0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;
    let config = r#"{"name": "test", "some": "config"}"#;
    let details = format!("config is \"0.1.0\", {spoken}");
    refuses(&Case { config, ..Case::of("ADD") }, 1, "incompatible CNI versions", &details);
    let config = r#"{"name": "test", "cniVersion": "9.8.7"}"#;
    let details = format!("config is \"9.8.7\", {spoken}");
    refuses(&Case { config, ..Case::of("DEL") }, 1, "incompatible CNI versions", &details);
    let config = r#"{"name": "test", "cniVersion": "0.3.0"}"#;
    refuses(&Case { config, ..Case::of("CHECK") }, 1, "config version does not allow CHECK", "");
    let config = r#"{"name": "test", "cniVersion": "1.0.0"}"#;
    for (command, words) in [
        ("GC", "config version does not allow GC"),
        ("STATUS", "config version does not allow STATUS"),
    ] {
        refuses(&Case { config, ..Case::of(command) }, 1, words, "");
    }
    for command in ["CHECK", "GC", "STATUS"] {
        let config = r#"{"name": "test", "cniVersion": "adsfsadf"}"#;
        let refused = Case { config, ..Case::of(command) }.refused().unwrap();
        assert_eq!(refused.0, 6, "{refused:?}");
    }
}

/// A standard input that cannot be read.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("banana"))
    }
}

#[test]
fn the_configuration_is_read_only_where_it_is_needed() {
    let call = |command: &str| {
        let words = [("COMMAND", command), ("CONTAINERID", "c"), ("NETNS", "/x"), ("PATH", "/p")];
        let words = words.into_iter().chain([("IFNAME", "eth0")]);
        let env = words.map(|(name, value)| (format!("CNI_{name}"), value.to_owned()));
        let mut output = Vec::new();
        let code = serve(Broken, &mut output, env);
        (code, String::from_utf8(output).unwrap())
    };
    let (code, said) = call("VERSION");
    assert!(code == 0 && said.contains("supportedVersions"), "{said}");
    let (code, said) = call("ADD");
    assert!(code == 1 && said.contains("\"error reading from stdin: banana\""), "{said}");
}
