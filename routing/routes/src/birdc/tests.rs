use expect_test::{Expect, expect};

use super::*;

#[track_caller]
fn one(text: &str) -> Reply {
    let mut replies = Reader::default().read(text.as_bytes()).unwrap();
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies.remove(0)
}

#[track_caller]
fn check(text: &str, expected: Expect) {
    let rows = parse_protocols(&one(text));
    let rows = rows.iter().map(|row| {
        format!(
            "{} {} {} [{}] [{}] {}",
            row.name,
            row.kind,
            row.state,
            row.since,
            row.info,
            row.is_running()
        )
    });
    expected.assert_eq(&rows.collect::<Vec<_>>().join("\n"));
}

#[test]
fn protocols_are_read_whatever_the_time_format() {
    check(
        "2002-Name       Proto      Table      State  Since         Info\n\
         1002-device1    Device     ---        up     08:00:01.123  \n\
         \x20tor1       BGP        ---        up     2026-11-21 08:00:02  Established   \n\
         \x20tor2       BGP        ---        start  2026-11-21  Active        Socket: Connection refused\n\
         \x20rack4      OSPF       master4    up     2026-11-21 08:00:02.001  Running\n\
         0000 \n",
        expect![[r#"
            device1 Device up [08:00:01.123] [] true
            tor1 BGP up [2026-11-21 08:00:02] [Established] true
            tor2 BGP start [2026-11-21] [Active Socket: Connection refused] false
            rack4 OSPF up [2026-11-21 08:00:02.001] [Running] true"#]],
    );
}

#[test]
fn replies_may_come_in_any_pieces() {
    let bytes = b"0001 BIRD 2.17.5 ready.\n0002-Reading configuration from /x\n0003 Reconfigured\n";
    for size in 1..bytes.len() {
        let mut reader = Reader::default();
        let replies: Vec<Reply> =
            bytes.chunks(size).flat_map(|chunk| reader.read(chunk).unwrap()).collect();
        assert_eq!(replies.iter().map(Reply::code).collect::<Vec<_>>(), [1, 3], "pieces of {size}");
    }
}

#[test]
fn configure_has_five_outcomes() {
    let outcome = |text| parse_configured(&one(text));
    assert_eq!(outcome("0002-Reading\n0003 Reconfigured\n"), Configured::Applied);
    assert_eq!(outcome("0002-Reading\n0004 Reconfiguration in progress\n"), Configured::Underway);
    assert_eq!(outcome("0002-Reading\n0020 Configuration OK\n"), Configured::Checked);
    assert_eq!(outcome("0006 Shutting down\n"), Configured::ShuttingDown);
    let message = "/run/bird/bird.conf.new:3:9 syntax error".to_owned();
    let refused = outcome("0002-Reading\n8002 /run/bird/bird.conf.new:3:9 syntax error\n");
    assert_eq!(refused, Configured::Refused { message });
}

#[test]
fn route_counts_are_summed_where_bird_sums_them() {
    let count = |text| parse_route_count(&one(text)).map(|count| (count.routes, count.networks));
    assert_eq!(count("0014 12 of 14 routes for 7 networks in table master4\n"), Some((12, 7)));
    let two = "0014-3 of 3 routes for 3 networks in table master4\n\
               \x201 of 1 routes for 1 networks in table master6\n\
               0014 Total: 4 of 4 routes for 4 networks in 2 tables\n";
    assert_eq!(count(two), Some((4, 4)));
    assert_eq!(count("9001 syntax error\n"), None);
}

#[test]
fn what_is_no_control_protocol_is_refused_with_its_place() {
    let mut reader = Reader::default();
    let err = reader.read(b"0001 ready\nHTTP/1.1 400 Bad Request\n").unwrap_err();
    assert_eq!(err.to_string(), "line \"HTTP/1.1 400 Bad Request\" at byte 11 has no reply code");
    let long = vec![b'x'; 40_000];
    assert_eq!(Reader::default().read(&long), Err(ReadError::TooLong { offset: 0 }));
}

#[test]
fn any_bytes_are_survived() {
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let mut reader = Reader::default();
        if let Ok(replies) = reader.read(bytes) {
            for reply in replies {
                std::hint::black_box(parse_protocols(&reply));
                std::hint::black_box(parse_route_count(&reply));
                std::hint::black_box(parse_configured(&reply));
            }
        }
    });
}
