use proptest::prelude::*;

use super::*;

fn ends(source: &str, destination: &str) -> Ends {
    Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// A header of version 2 with that command and family, and the rest of it.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&v2::SIGNATURE[..], &[command, family], &length, rest].concat()
}

const IPV4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0x30, 0x39, 0x01, 0xBB];

fn read(header: &[u8]) -> Result<Option<Ends>, HeaderError> {
    match extent(header)? {
        Extent::Whole(length) => parse(&header[..length]),
        Extent::Partial => panic!("not whole: {header:?}"),
    }
}

#[test]
fn a_line_of_version_1_says_whose_connection_it_is() {
    let v4 = ends("192.0.2.1:12345", "198.51.100.7:443");
    let v6 = ends("[2001:db8::1]:1", "[2001:db8::2]:0");
    for (line, expected) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n", Some(v4)),
        ("PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 1 0\r\n", Some(v6)),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 whatever \r\n", None),
    ] {
        assert_eq!(read(line.as_bytes()), Ok(expected), "{line:?}");
    }
}

#[test]
fn a_line_that_is_not_quite_one_is_refused() {
    for line in [
        "PROXY TCP4 192.0.2.1 198.51.100.7 12345\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 12345 443 \r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.7 12345 443\r\n",
        "PROXY  TCP4 192.0.2.1 198.51.100.7 12345 443\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.7 12345 443\r\n",
        "PROXY TCP4 192.0.2 198.51.100.7 12345 443\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 12345 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.7 12345 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 12345 65536\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 01 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 443\n\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1\t443\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.7 1 443\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY \r\n",
    ] {
        assert!(matches!(read(line.as_bytes()), Err(HeaderError::Malformed(_))), "{line:?}");
    }
    assert_eq!(extent(b"PROXY TCP4 192.0.2.1 198.51.100.7 1 443\n"), Ok(Extent::Partial));
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
    assert_eq!((longest.len(), read(longest.as_bytes())), (107, Ok(None)));
    let longer = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
    assert_eq!(extent(longer.as_bytes()), Err(HeaderError::TooLong));
    assert_eq!(extent(&longer.as_bytes()[..106]), Ok(Extent::Partial));
}

#[test]
fn version_2_says_whose_connection_it_is_and_fields_are_skipped() {
    let v4 = ends("192.0.2.1:12345", "198.51.100.7:443");
    let v6 = [&[0x20, 1, 0xD, 0xB8][..], &[0; 11], &[1], &[0xFF; 16], &[0, 1, 0, 2]].concat();
    let expected = ends("[2001:db8::1]:1", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:2");
    assert_eq!(read(&v2(0x21, 0x11, IPV4)), Ok(Some(v4)));
    assert_eq!(read(&v2(0x21, 0x21, &v6)), Ok(Some(expected)));
    let with_fields = [IPV4, &[4, 0, 0], &[0x20, 0, 3, 1, 2, 3]].concat();
    assert_eq!(read(&v2(0x21, 0x11, &with_fields)), Ok(Some(v4)));
    // Its sender's own, of an unknown family, or of one that is not TCP's.
    assert_eq!(read(&v2(0x20, 0x11, IPV4)), Ok(None));
    assert_eq!(read(&v2(0x20, 0xFF, b"whatever")), Ok(None));
    assert_eq!(read(&v2(0x21, 0x00, b"whatever")), Ok(None));
    assert_eq!(read(&v2(0x21, 0x12, IPV4)), Ok(None));
    assert_eq!(read(&v2(0x21, 0x31, &[b'/'; 216])), Ok(None));
}

#[test]
fn version_2_with_a_wrong_word_or_length_is_refused() {
    for (command, family, rest) in [
        (0x11, 0x11, IPV4),
        (0x22, 0x11, IPV4),
        (0x31, 0x11, IPV4),
        (0x21, 0x10, IPV4),
        (0x21, 0x13, IPV4),
        (0x21, 0x41, IPV4),
        (0x21, 0x21, IPV4),
        (0x21, 0x31, IPV4),
        (0x21, 0x11, &IPV4[..11]),
        (0x21, 0x11, &[IPV4, &[4]].concat()),
        (0x21, 0x11, &[IPV4, &[4, 0]].concat()),
        (0x21, 0x11, &[IPV4, &[4, 0, 2, 0]].concat()),
    ] {
        let read = read(&v2(command, family, rest));
        assert!(matches!(read, Err(HeaderError::Malformed(_))), "{command:x} {family:x} {rest:?}: {read:?}");
    }
    let fixed = |length: u16| [&v2::SIGNATURE[..], &[0x21, 0x11], &length.to_be_bytes()].concat();
    assert_eq!(extent(&fixed(4080)), Ok(Extent::Partial));
    assert_eq!(extent(&fixed(4081)), Err(HeaderError::TooLong));
}

#[test]
fn a_checksum_is_held_to() {
    let mut header = v2(0x21, 0x11, &[IPV4, &[3, 0, 4, 0, 0, 0, 0], &[4, 0, 1, 0]].concat());
    // Known from another implementation of the same sum.
    let sum = {
        let table: Vec<u32> = (0..256_u32)
            .map(|byte| (0..8).fold(byte, |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())))
            .collect();
        let step = |crc: u32, byte: &u8| table[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ (crc >> 8);
        !header.iter().fold(!0, step)
    };
    assert_eq!(read(&header), Err(HeaderError::Malformed("its checksum is wrong")));
    header[31..35].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(read(&header), Ok(Some(ends("192.0.2.1:12345", "198.51.100.7:443"))));
    header[17] ^= 1;
    assert_eq!(read(&header), Err(HeaderError::Malformed("its checksum is wrong")));
    let short = v2(0x21, 0x11, &[IPV4, &[3, 0, 3, 0, 0, 0]].concat());
    assert_eq!(read(&short), Err(HeaderError::Malformed("its checksum is wrong")));
}

#[test]
fn what_begins_otherwise_is_none_from_the_first_byte_that_tells() {
    for begin in [&b"G"[..], b"\x16\x03", b"PROXy", b"PROXY\t", b"\r\n\r\n\0\r\nQUIT\r", b"\n", b"proxy "] {
        assert_eq!(extent(begin), Err(HeaderError::Missing), "{begin:?}");
    }
    assert_eq!(extent(b"PROX"), Ok(Extent::Partial));
    assert_eq!(extent(b"\r\n\r\n\0\r\nQUI"), Ok(Extent::Partial));
}

#[test]
fn a_header_that_is_written_has_both_ends_in_one_family() {
    let mixed = ends("192.0.2.1:12345", "[2001:db8::2]:443");
    let line = of_client(ProxyProtocol::V1, mixed);
    let expected = "PROXY TCP6 0:0:0:0:0:ffff:c000:201 2001:db8:0:0:0:0:0:2 12345 443\r\n";
    assert_eq!(String::from_utf8(line).unwrap(), expected);
    let mapped = ends("[::ffff:192.0.2.1]:12345", "[::ffff:198.51.100.7]:443");
    let line = of_client(ProxyProtocol::V1, mapped);
    assert_eq!(line, b"PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n");
    assert_eq!(of_client(ProxyProtocol::V2, mapped), v2(0x21, 0x11, IPV4));
    assert_eq!(of_own(ProxyProtocol::V2, mapped), v2(0x20, 0, b""));
    assert_eq!(of_own(ProxyProtocol::V1, mapped), line);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        source: (u32, u128, u16),
        destination: (u32, u128, u16),
        is_v4: bool,
        version: bool,
    ) {
        let end = |(v4, v6, port): (u32, u128, u16)| {
            let ip = if is_v4 { IpAddr::V4(v4.into()) } else { IpAddr::V6(v6.into()) };
            SocketAddr::new(ip, port)
        };
        let ends = Ends { source: end(source), destination: end(destination) };
        let version = if version { ProxyProtocol::V1 } else { ProxyProtocol::V2 };
        let header = of_client(version, ends);
        for cut in 1..header.len() {
            prop_assert_eq!(extent(&header[..cut]), Ok(Extent::Partial));
        }
        let with_more = [&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
        prop_assert_eq!(extent(&with_more), Ok(Extent::Whole(header.len())));
        prop_assert_eq!(parse(&header), Ok(Some(ends.in_one_family())));
    }

    /// Whatever comes, it is read or refused, and a header is never longer than what came.
    #[test]
    fn no_bytes_bring_it_down(
        begin in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", &v2::LOCAL[..12]]),
        flip in prop::option::of((0..40_usize, any::<u8>())),
        rest in prop::collection::vec(any::<u8>(), 0..80),
        command in prop::sample::select(vec![0x20_u8, 0x21]),
        family in prop::sample::select(vec![0_u8, 0x11, 0x12, 0x21, 0x31]),
    ) {
        let plain = [begin, &rest].concat();
        let mut framed = v2(command, family, &rest);
        if let Some((at, byte)) = flip && at < framed.len() {
            framed[at] = byte;
        }
        for bytes in [plain, framed] {
            if let Some(Ok(Extent::Whole(length))) = (!bytes.is_empty()).then(|| extent(&bytes)) {
                prop_assert!(length <= bytes.len());
                // An error is an answer.
                let _ends = parse(&bytes[..length]);
            }
        }
    }
}
