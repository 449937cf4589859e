use expect_test::expect;

use super::*;
use crate::Firmware;

fn discover() -> Message {
    Message::request(Kind::Discover, Mac::new([0x52, 0x54, 0, 0, 1, 0x0b]), 0x0102_0304)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
        .collect()
}

/// A header as the wire has it, then these options.
fn packet(options: &str) -> Vec<u8> {
    let mut bytes = discover().encode(548).unwrap();
    bytes.truncate(HEADER_LEN);
    bytes.extend(hex(options));
    bytes
}

#[track_caller]
fn check_options(options: &str, expected: &str) {
    let found = match Message::decode(&packet(options)) {
        Ok(message) => {
            let texts = message.options.iter().map(|(code, bytes)| {
                let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{code}={bytes}")
            });
            texts.collect::<Vec<_>>().join(" ")
        }
        Err(err) => err.to_string(),
    };
    assert_eq!(found, expected, "{options}");
}

#[test]
fn options_are_read_or_refused_with_their_offset() {
    check_options("350101 ff", "53=01");
    check_options("350101", "53=01");
    check_options("00 00 350101 00 ff 350102", "53=01");
    check_options("", "");
    check_options("350101 e0020102 ff", "53=01 224=0102");
    check_options("5200 ff", "82=");
    check_options("35", "option 53 at offset 0 runs past the end of its field");
    check_options("3501", "option 53 at offset 0 runs past the end of its field");
    check_options("350101 3204 0a00", "option 50 at offset 3 runs past the end of its field");
    check_options("350101 3dff 01", "option 61 at offset 3 runs past the end of its field");
}

#[test]
fn parts_of_a_long_option_are_joined() {
    check_options("4301 61 350101 4301 62 ff", "67=6162 53=01");
    let mut message = discover();
    let long: Vec<u8> = (0..=255).cycle().take(600).collect();
    message.options.set(option::BOOT_FILE, long.clone());
    let decoded = Message::decode(&message.encode(1472).unwrap()).unwrap();
    assert_eq!(decoded.options.get(option::BOOT_FILE), Some(long.as_slice()));
}

#[test]
fn options_in_overloaded_fields_are_read() {
    let mut message = discover();
    message.file[..5].copy_from_slice(&[12, 2, b'h', b'i', 255]);
    message.server_name[..3].copy_from_slice(&[61, 1, 7]);
    for (overload, name, identifier) in
        [(1, Some(&b"hi"[..]), None), (2, None, Some(&[7][..])), (3, Some(b"hi"), Some(&[7]))]
    {
        let mut message = message.clone();
        message.options.set(option::OVERLOAD, [overload]);
        let decoded = Message::decode(&message.encode(548).unwrap()).unwrap();
        assert_eq!(decoded.options.get(option::HOST_NAME), name);
        assert_eq!(decoded.options.get(option::CLIENT_IDENTIFIER), identifier);
        assert_eq!(decoded.options.get(option::OVERLOAD), None);
    }
}

#[test]
fn foreign_packets_are_refused() {
    let good = discover().encode(548).unwrap();
    for len in 0..HEADER_LEN {
        assert_eq!(Message::decode(&good[..len]), Err(DecodeError::Short { len }));
    }
    let mut bytes = good.clone();
    bytes[0] = 3;
    assert_eq!(Message::decode(&bytes), Err(DecodeError::Operation { found: 3 }));
    let mut bytes = good;
    bytes[236] = 0;
    assert_eq!(Message::decode(&bytes), Err(DecodeError::Cookie));
}

#[test]
fn answers_are_padded_for_old_roms_and_never_too_long() {
    let mut message = discover();
    assert_eq!(message.encode(548).unwrap().len(), 300);
    message.options.set(option::BOOT_FILE, vec![b'x'; 400]);
    assert_eq!(message.encode(548), Err(TooLong { needed: 648, limit: 548 }));
}

#[test]
fn a_group_address_is_no_machine() {
    assert_eq!(discover().mac().unwrap().to_string(), "52:54:00:00:01:0b");
    for (kind, len, first) in [(6, 6, 0x52), (1, 8, 0x52), (1, 6, 0x53)] {
        let mut message = discover();
        (message.hardware_kind, message.hardware_len, message.hardware[0]) = (kind, len, first);
        assert_eq!(message.mac(), None);
    }
}

#[test]
fn clients_are_told_apart() {
    let arm = Firmware::Unsupported { architecture: 11 };
    let ia32 = Firmware::Unsupported { architecture: 15 };
    let other: &[(&str, &[u8], &[u8], Firmware)] = &[
        ("PXEClient:Arch:00000:UNDI:002001", &[0, 0], b"", Firmware::PxeBios),
        ("PXEClient", b"", b"", Firmware::PxeBios),
        ("PXEClient:Arch:00007:UNDI:003000", b"", b"", Firmware::PxeEfi),
        ("PXEClient:Arch:00007:UNDI:003000", &[0, 9], b"", Firmware::PxeEfi),
        ("PXEClient:Arch:00007:UNDI:003000", &[0, 7, 0, 9], b"", Firmware::PxeEfi),
        ("PXEClient:Arch:00011:UNDI:003000", &[0, 11], b"", arm),
        ("PXEClient:Arch:00011:UNDI:003000", &[9], b"", arm),
        ("HTTPClient:Arch:00016:UNDI:003001", &[0, 16], b"", Firmware::HttpEfi),
        ("HTTPClient:Arch:00015:UNDI:003001", &[0, 15], b"", ia32),
        ("PXEClient:Arch:00000:UNDI:002001", &[0, 0], b"iPXE", Firmware::Ipxe),
        ("HTTPClient:Arch:00016:UNDI:003001", &[0, 16], b"\x04iPXE", Firmware::Ipxe),
        ("muster-init", b"", b"", Firmware::Init),
        ("udhcp 1.35.0", b"", b"", Firmware::Other),
        ("", &[0, 7], b"", Firmware::Other),
    ];
    for (class, architecture, user_class, expected) in other {
        let mut message = discover();
        message.options.set(option::VENDOR_CLASS, class.as_bytes());
        message.options.set(option::CLIENT_ARCHITECTURE, *architecture);
        message.options.set(option::USER_CLASS, *user_class);
        assert_eq!(client::firmware(&message), *expected, "{class}");
    }
}

#[test]
fn relay_data_is_found_and_broken_relay_data_is_not() {
    let mut message = discover();
    for (option, expected) in [
        ("0104 65746830 0203 010203", Some(&b"eth0"[..])),
        ("0203 010203 0104 65746830", Some(b"eth0")),
        ("0203 010203", None),
        ("0109 65", None),
        ("01", None),
    ] {
        message.options.set(option::RELAY_AGENT, hex(option));
        assert_eq!(client::relay_data(&message, option::relay::CIRCUIT), expected, "{option}");
    }
}

#[test]
fn a_real_request_is_read() {
    // OVMF 2022.11 asking by UEFI HTTP boot, from a capture; trailing padding cut.
    let mut message = discover();
    message.set_broadcast();
    message.options.set(option::PARAMETER_LIST, hex("01 03 06 0c 0f 1c 28 29 2a 2b 33 36"));
    message.options.set(option::MESSAGE_SIZE_MAX, hex("05b8"));
    message.options.set(option::CLIENT_UUID, hex("00 33221100554477668899aabbccddeeff"));
    let text = format!("{:?}", Message::decode(&message.encode(548).unwrap()).unwrap().options);
    expect![[
        r#"Options([(53, [1]), (55, [1, 3, 6, 12, 15, 28, 40, 41, 42, 43, 51, 54]), (57, [5, 184]), (97, [0, 51, 34, 17, 0, 85, 68, 119, 102, 136, 153, 170, 187, 204, 221, 238, 255])])"#
    ]]
    .assert_eq(&text);
}

#[test]
fn no_bytes_break_the_codec_and_what_is_read_is_written_again() {
    let head = discover().encode(548).unwrap();
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let _ignored = Message::decode(bytes).is_ok();
        let mut packet = head[..HEADER_LEN].to_vec();
        packet.extend_from_slice(bytes);
        if let Ok(message) = Message::decode(&packet) {
            let _ignored = client::firmware(&message);
            let _ignored = client::relay_data(&message, option::relay::CIRCUIT);
            let again = Message::decode(&message.encode(usize::MAX).unwrap()).unwrap();
            assert_eq!(again, message);
        }
    });
}
