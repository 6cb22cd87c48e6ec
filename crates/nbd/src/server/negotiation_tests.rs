//! Answers to options, byte by byte.

use super::*;
use crate::memory::MemoryExport;

const PLAIN: ClientFlags = ClientFlags { fixed_newstyle: true, no_zeroes: true };

/// What a reply of ours looks like, written out from the specification.
fn expect(code: u8, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, code];
    out.extend(kind.to_be_bytes());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out
}

fn offer(export: MemoryExport) -> Offer {
    Offer { name: "disk".to_owned(), export: Arc::new(export) }
}

struct Session {
    offer: Offer,
    client: ClientFlags,
    tls: TlsPhase,
    agreed: Agreed,
}

fn session() -> Session {
    let agreed = Agreed::default();
    Session { offer: offer(MemoryExport::new(0x10_0000)), client: PLAIN, tls: TlsPhase::Off, agreed }
}

impl Session {
    fn answer(&mut self, code: u32, data: &[u8]) -> (Next, Vec<u8>) {
        let mut out = BytesMut::new();
        let (client, tls, agreed) = (self.client, self.tls, self.agreed);
        let mut negotiation = Negotiation { offer: &self.offer, client, tls, agreed };
        let next = negotiation.answer(code, data, &mut out);
        self.agreed = negotiation.agreed;
        (next, out.to_vec())
    }

    fn refuses(&mut self, code: u32, data: &[u8], error: u32) {
        let (next, out) = self.answer(code, data);
        assert_eq!(next, Next::Option);
        assert_eq!(out[12..16], error.to_be_bytes(), "{out:02x?}");
        assert_eq!(out.len(), 20 + u32::from_be_bytes(out[16..20].try_into().unwrap()) as usize);
    }
}

#[test]
fn the_old_export_name_reply_has_124_zeros_unless_agreed_away() {
    let mut session = session();
    let expected = [0, 0, 0, 0, 0, 0x10, 0, 0, 0x01, 0x6d];
    assert_eq!(session.answer(1, b"disk"), (Next::Transmission, expected.to_vec()));
    session.client.no_zeroes = false;
    let (next, out) = session.answer(1, b"");
    assert_eq!((next, out.len()), (Next::Transmission, 134));
    assert_eq!(out[..10], expected);
    assert!(out[10..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_old_export_name_cannot_report_an_unknown_name() {
    assert_eq!(session().answer(1, b"other"), (Next::UnknownExport, vec![]));
}

#[test]
fn abort_is_acknowledged_and_closes() {
    assert_eq!(session().answer(2, b""), (Next::Close, expect(2, 1, b"")));
}

#[test]
fn list_names_the_one_export() {
    let expected = [expect(3, 2, b"\0\0\0\x04disk"), expect(3, 1, b"")].concat();
    assert_eq!(session().answer(3, b""), (Next::Option, expected));
    session().refuses(3, b"x", reply::ERR_INVALID);
}

#[test]
fn go_tells_size_flags_and_block_sizes_then_enters_transmission() {
    let export = expect(7, 3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x01, 0x6d]);
    let blocks = expect(7, 3, &[0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 0x02, 0, 0, 0]);
    let expected = [export.clone(), blocks.clone(), expect(7, 1, b"")].concat();
    assert_eq!(session().answer(7, b"\0\0\0\x04disk\0\0"), (Next::Transmission, expected.clone()));
    assert_eq!(session().answer(7, b"\0\0\0\0\0\x01\0\x03"), (Next::Transmission, expected));
    let name = expect(7, 3, b"\0\x01disk");
    let expected = [export, name, blocks, expect(7, 1, b"")].concat();
    assert_eq!(session().answer(7, b"\0\0\0\0\0\x02\0\x01\0\x63"), (Next::Transmission, expected));
}

#[test]
fn info_tells_the_same_and_stays() {
    let (next, out) = session().answer(6, b"\0\0\0\x04disk\0\0");
    assert_eq!(next, Next::Option);
    assert_eq!(out[..32], expect(6, 3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x01, 0x6d]));
}

#[test]
fn an_unknown_or_malformed_name_is_refused_and_the_client_may_go_on() {
    session().refuses(7, b"\0\0\0\x05other\0\0", reply::ERR_UNKNOWN);
    for malformed in [
        &b""[..],
        b"\0\0\0\x05disk\0\0",
        b"\0\0\0\x04disk",
        b"\0\0\0\0\0\x02\0\x01",
        b"\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\0\0",
    ] {
        session().refuses(7, malformed, reply::ERR_INVALID);
        session().refuses(6, malformed, reply::ERR_INVALID);
    }
}

#[test]
fn unknown_options_are_unsupported() {
    for code in [0, 4, 11, 99, u32::MAX] {
        session().refuses(code, b"whatever", reply::ERR_UNSUP);
    }
}

#[test]
fn structured_replies_are_agreed_once_and_bring_the_df_flag() {
    let mut session = session();
    session.refuses(8, b"x", reply::ERR_INVALID);
    assert_eq!(session.answer(8, b""), (Next::Option, expect(8, 1, b"")));
    session.refuses(8, b"", reply::ERR_INVALID);
    let (_, out) = session.answer(1, b"");
    assert_eq!(out[8..], [0x01, 0xed]);
}

#[test]
fn a_read_only_export_offers_no_trims_and_no_zeroes() {
    let mut session = session();
    session.offer = offer(MemoryExport::new(512).into_read_only());
    let (_, out) = session.answer(1, b"");
    assert_eq!(out[8..], [0x01, 0x0f]);
}

#[test]
fn contexts_need_structured_replies_first() {
    session().refuses(9, b"\0\0\0\0\0\0\0\0", reply::ERR_INVALID);
    session().refuses(10, b"\0\0\0\0\0\0\0\0", reply::ERR_INVALID);
}

#[test]
fn contexts_are_listed_by_name_by_wildcard_and_when_nothing_is_asked() {
    let mut session = session();
    session.agreed.structured = true;
    let found = [expect(9, 4, b"\0\0\0\0base:allocation"), expect(9, 1, b"")].concat();
    let none = expect(9, 1, b"");
    for (queries, expected) in [
        (&b"\0\0\0\0"[..], &found),
        (b"\0\0\0\x01\0\0\0\x05base:", &found),
        (b"\0\0\0\x01\0\0\0\x0fbase:allocation", &found),
        (b"\0\0\0\x02\0\0\0\x01x\0\0\0\x0fbase:allocation", &found),
        (b"\0\0\0\x01\0\0\0\x05qemu:", &none),
    ] {
        let data = [b"\0\0\0\x04disk", queries].concat();
        assert_eq!(session.answer(9, &data), (Next::Option, expected.clone()));
    }
}

#[test]
fn a_context_is_set_by_its_full_name_only_and_the_last_set_counts() {
    let mut session = session();
    session.agreed.structured = true;
    let set = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
    let expected = [expect(10, 4, b"\0\0\0\x01base:allocation"), expect(10, 1, b"")].concat();
    assert_eq!(session.answer(10, set), (Next::Option, expected));
    assert!(session.agreed.allocation);
    assert_eq!(session.answer(10, b"\0\0\0\0\0\0\0\x01\0\0\0\x05base:"), (Next::Option, expect(10, 1, b"")));
    assert!(!session.agreed.allocation);
    session.answer(10, set);
    session.refuses(10, b"\0\0\0\x05other\0\0\0\0", reply::ERR_UNKNOWN);
    assert!(!session.agreed.allocation);
    session.answer(10, set);
    session.refuses(10, b"\0\0\0\0\xff\xff\xff\xff", reply::ERR_INVALID);
    assert!(!session.agreed.allocation);
}

#[test]
fn until_tls_is_spoken_nothing_else_is_answered() {
    let mut session = session();
    session.tls = TlsPhase::Required;
    for code in [3, 6, 7, 8, 9, 10, 99] {
        session.refuses(code, b"\0\0\0\x04disk\0\0", reply::ERR_TLS_REQD);
    }
    assert_eq!(session.answer(1, b"disk"), (Next::NotAllowed, vec![]));
    session.refuses(5, b"x", reply::ERR_INVALID);
    assert_eq!(session.answer(5, b""), (Next::StartTls, expect(5, 1, b"")));
    assert_eq!(session.answer(2, b""), (Next::Close, expect(2, 1, b"")));
    session.tls = TlsPhase::Active;
    session.refuses(5, b"", reply::ERR_INVALID);
    session.tls = TlsPhase::Off;
    session.refuses(5, b"", reply::ERR_POLICY);
}

#[test]
fn a_client_without_fixed_newstyle_gets_export_name_only() {
    let mut session = session();
    session.client.fixed_newstyle = false;
    assert_eq!(session.answer(7, b"\0\0\0\0\0\0"), (Next::NotAllowed, vec![]));
    assert_eq!(session.answer(1, b"disk").0, Next::Transmission);
}

#[test]
fn client_flags_we_do_not_know_are_refused() {
    assert_eq!(ClientFlags::parse(3), Some(PLAIN));
    assert_eq!(ClientFlags::parse(1).map(|flags| flags.no_zeroes), Some(false));
    assert_eq!(ClientFlags::parse(4), None);
    assert_eq!(ClientFlags::parse(0xffff_ffff), None);
}
