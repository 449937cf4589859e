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
    let whole = "COMMAND=ADD CONTAINERID=c1 NETNS=/x IFNAME=eth0";
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
            r#"1 {"cniVersion":"1.0.0","code":1,"details":"","msg":"CNI version 9.9 is none of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"}"#
        ]],
    );
    check(
        whole,
        r#"{"cniVersion":"0.4.0"}"#,
        expect![[
            r#"1 {"cniVersion":"0.4.0","code":7,"details":"","msg":"the configuration has no name"}"#
        ]],
    );
    check(
        "COMMAND=FLY",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"CNI_COMMAND \"FLY\" is unknown"}"#
        ]],
    );
    check(
        "COMMAND=ADD CONTAINERID=../x NETNS=/x IFNAME=eth0",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"CNI_CONTAINERID \"../x\" is missing or malformed"}"#
        ]],
    );
    check(
        "COMMAND=ADD CONTAINERID=c NETNS=/x IFNAME=a/b",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"CNI_IFNAME \"a/b\" is missing or malformed"}"#
        ]],
    );
    check(
        "COMMAND=ADD CONTAINERID=c IFNAME=eth0",
        CONFIG,
        expect![[r#"1 {"cniVersion":"1.0.0","code":4,"details":"","msg":"CNI_NETNS is missing"}"#]],
    );
}

#[test]
fn without_a_pod_network_the_runtime_shall_try_later() {
    check(
        "COMMAND=ADD CONTAINERID=c1 NETNS=/x IFNAME=eth0",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":11,"details":"","msg":"no pod network yet: /nonexistent/pod-network.json is not there"}"#
        ]],
    );
    check(
        "COMMAND=STATUS",
        CONFIG,
        expect![[
            r#"1 {"cniVersion":"1.0.0","code":50,"details":"","msg":"no pod network yet: /nonexistent/pod-network.json is not there"}"#
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
