use super::*;

const START: Moment = Moment::from_unix_ms(1_000_000);

fn at(ms: u64) -> Moment {
    START.plus(Duration::from_millis(ms))
}

fn file(len: usize) -> Arc<[u8]> {
    (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

fn request(options: &[(&str, &str)]) -> ReadRequest {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    ReadRequest {
        file: "undionly.kpxe".to_owned(),
        mode: "octet".to_owned(),
        options: options.collect(),
    }
}

/// A client as the RFCs want it, which keeps what it gets.
struct Client {
    block_size: usize,
    window: u64,
    bytes: Vec<u8>,
    next: u64,
    in_window: u64,
}

impl Client {
    fn new(block_size: usize, window: u64) -> Self {
        Self { block_size, window, bytes: Vec::new(), next: 1, in_window: 0 }
    }

    /// Takes packets, of which some are lost, and tells what it acknowledges.
    fn take(&mut self, packets: &[Vec<u8>], mut is_lost: impl FnMut() -> bool) -> Option<Vec<u8>> {
        let mut answer = None;
        for packet in packets {
            if is_lost() {
                continue;
            }
            if packet.starts_with(&[0, 6]) {
                answer = Some(0);
                continue;
            }
            assert!(packet.starts_with(&[0, 3]), "{packet:?}");
            let number = u16::from_be_bytes([packet[2], packet[3]]);
            if number != u16::try_from(self.next & 0xffff).unwrap() {
                answer = Some(self.next - 1);
                self.in_window = 0;
                continue;
            }
            self.bytes.extend_from_slice(&packet[4..]);
            self.next += 1;
            self.in_window += 1;
            if self.in_window == self.window || packet.len() < 4 + self.block_size {
                self.in_window = 0;
                answer = Some(self.next - 1);
            }
        }
        answer.map(|block| render_ack(u16::try_from(block & 0xffff).unwrap()))
    }
}

/// Runs a transfer to its end; every n-th packet of the server is lost (0: none).
#[track_caller]
fn check_transfer(len: usize, options: &[(&str, &str)], block: usize, window: u64, lost: usize) {
    let wanted = file(len);
    let mut client = Client::new(block, window);
    let (mut transfer, mut step) = Transfer::start(START, &request(options), Arc::clone(&wanted));
    let (mut now, mut sent, mut rounds) = (START, 0_usize, 0_usize);
    while step.progress == Progress::Going {
        rounds += 1;
        assert!(rounds < 400_000, "no end");
        let answer = client.take(&step.send, || {
            sent += 1;
            lost > 0 && sent.is_multiple_of(lost)
        });
        step = match answer {
            Some(answer) => {
                now = now.plus(Duration::from_millis(1));
                transfer.handle(now, &answer)
            }
            None => {
                now = now.max(transfer.deadline());
                transfer.wake(now)
            }
        };
    }
    assert_eq!(step.progress, Progress::Done);
    assert!(client.bytes == *wanted, "content differs");
}

#[test]
fn files_of_all_sizes_arrive_whole() {
    for len in [0, 1, 511, 512, 513, 1024, 70_000] {
        check_transfer(len, &[], 512, 1, 0);
        check_transfer(len, &[("blksize", "1468"), ("windowsize", "4")], 1468, 4, 0);
    }
}

#[test]
fn block_numbers_roll_over() {
    check_transfer(8 * 70_000, &[("blksize", "8")], 8, 1, 0);
    check_transfer(8 * 140_000 + 3, &[("blksize", "8"), ("windowsize", "16")], 8, 16, 0);
}

#[test]
fn lost_packets_are_sent_again() {
    for lost in [3, 5, 7, 17] {
        check_transfer(20_000, &[], 512, 1, lost);
        check_transfer(200_000, &[("blksize", "1468"), ("windowsize", "8")], 1468, 8, lost);
    }
}

#[track_caller]
fn check_offer(options: &[(&str, &str)], expected: &str) {
    let (_, step) = Transfer::start(START, &request(options), file(5000));
    let [packet] = step.send.as_slice() else { panic!("one packet") };
    let found = match packet.as_slice() {
        [0, 6, fields @ ..] => String::from_utf8_lossy(fields).replace('\0', " "),
        [0, 3, ..] => format!("data of {}", packet.len() - 4),
        _ => panic!("{packet:?}"),
    };
    assert_eq!(found.trim_end(), expected);
}

#[test]
fn options_are_taken_within_limits() {
    check_offer(&[], "data of 512");
    check_offer(&[("tsize", "0")], "tsize 5000");
    check_offer(
        &[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")],
        "tsize 5000 blksize 1468 windowsize 4",
    );
    check_offer(&[("blksize", "65464"), ("windowsize", "65535")], "blksize 1468 windowsize 16");
    check_offer(&[("timeout", "3"), ("multicast", "")], "timeout 3");
    check_offer(&[("blksize", "7"), ("timeout", "0"), ("windowsize", "0")], "data of 512");
    check_offer(&[("blksize", "many")], "data of 512");
}

#[test]
fn a_silent_client_is_given_up() {
    let (mut transfer, _) = Transfer::start(START, &request(&[("timeout", "2")]), file(9));
    let mut sends = 1;
    loop {
        assert_eq!(transfer.wake(START).send, Vec::<Vec<u8>>::new(), "before its time");
        let step = transfer.wake(transfer.deadline());
        if step.progress == Progress::Silent {
            break;
        }
        sends += step.send.len();
    }
    assert_eq!(sends, 8);
    assert_eq!(transfer.deadline(), at(2000 * 8));
}

#[test]
fn late_copies_of_an_acknowledgement_send_nothing_twice() {
    let (mut transfer, first) = Transfer::start(START, &request(&[]), file(5000));
    assert_eq!(first.send.len(), 1);
    assert_eq!(transfer.handle(at(1), &render_ack(1)).send.len(), 1);
    for ms in 2..9 {
        assert_eq!(transfer.handle(at(ms), &render_ack(1)).send.len(), 0);
        assert_eq!(transfer.handle(at(ms), &render_ack(0)).send.len(), 0);
        assert_eq!(transfer.handle(at(ms), &render_ack(7)).send.len(), 0, "from the future");
    }
}

#[test]
fn a_client_that_only_wanted_the_size_is_no_fault() {
    let (mut transfer, _) = Transfer::start(START, &request(&[("tsize", "0")]), file(9));
    let step = transfer.handle(at(1), &render_error(ErrorCode::OptionRefused, ""));
    assert_eq!(step.progress, Progress::Aborted("error 8".to_owned()));
}

#[track_caller]
fn check_packet(bytes: &[u8], expected: &str) {
    let found = match parse_packet(bytes) {
        Ok(Packet::Read(request)) => {
            format!("{} {} {:?}", request.file, request.mode, request.options)
        }
        Ok(packet) => format!("{packet:?}"),
        Err(err) => err.to_string(),
    };
    assert_eq!(found, expected);
}

#[test]
fn packets_are_read_or_refused() {
    check_packet(b"\0\x01a\0OCTET\0", "a octet []");
    check_packet(b"\0\x01a\0octet\0TSize\x000\0", r#"a octet [("tsize", "0")]"#);
    check_packet(b"\0\x01a\0octet\0tsize\0", "a octet []");
    check_packet(b"\0\x01a\0octet\0\0\0\0", r#"a octet [("", "")]"#);
    check_packet(b"\0\x01a\0octet", "bad text at offset 4");
    check_packet(b"\0\x01\xff\0octet\0", "bad text at offset 2");
    check_packet(b"\0\x01a\0", "packet of 4 bytes is cut off");
    check_packet(
        &[&b"\0\x01a\0octet\0"[..], &b"o\0v\0".repeat(17)].concat(),
        "more than 16 options",
    );
    check_packet(b"\0\x02a\0octet\0", "Write");
    check_packet(b"\0\x04\x12\x34", "Ack(4660)");
    check_packet(b"\0\x04\x12", "packet of 3 bytes is cut off");
    check_packet(b"\0\x05\0\x08no\0", r#"Error { code: 8, text: "no" }"#);
    check_packet(b"\0\x09", "operation 9");
    check_packet(b"\0", "packet of 1 bytes is cut off");
}

#[test]
fn no_bytes_break_a_transfer() {
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let (head, rest) = bytes.split_at(bytes.len() / 2);
        let first = match parse_packet(head) {
            Ok(Packet::Read(request)) => request,
            _ => request(&[("windowsize", "4"), ("blksize", "8")]),
        };
        let again = parse_packet(&render_read(&first));
        assert_eq!(again, Ok(Packet::Read(first.clone())));
        let (mut transfer, _) = Transfer::start(START, &first, file(100));
        for (index, packet) in rest.chunks(4).enumerate() {
            let now = at(u64::try_from(index).unwrap() * 400);
            let sent = transfer.handle(now, packet).send.len() + transfer.wake(now).send.len();
            assert!(sent <= 2 * 16);
        }
    });
}
