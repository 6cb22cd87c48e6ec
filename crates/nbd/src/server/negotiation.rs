//! The answers of a server to a client's options, as pure functions over bytes.
//!
//! One option comes in, the bytes to send and what happens next come out; no I/O happens here, so every answer can be
//! tested byte by byte. What must hold: while TLS is required and not yet spoken, nothing about the export leaves the
//! server, not even whether it exists; and starting TLS forgets everything agreed in the clear.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::meta_context;
use crate::Export;
use crate::protocol::{
    Fields, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, PREFERRED_BLOCK_BYTES, handshake, info, option, reply, transmission,
};

/// Zeros that end the old reply to EXPORT_NAME, unless both sides agreed to leave them out.
const EXPORT_NAME_ZEROES: usize = 124;

/// Where the connection stands with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsPhase {
    /// Not configured.
    Off,
    /// Configured and not yet spoken: only STARTTLS and ABORT are answered.
    Required,
    /// In force.
    Active,
}

/// What the client said about itself in its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientFlags {
    pub(super) fixed_newstyle: bool,
    pub(super) no_zeroes: bool,
}

impl ClientFlags {
    /// Unknown flags are `None`: a client that means something by them would misread our answers.
    pub(super) fn parse(flags: u32) -> Option<Self> {
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        (flags & !known == 0).then_some(Self {
            fixed_newstyle: flags & u32::from(handshake::FIXED_NEWSTYLE) != 0,
            no_zeroes: flags & u32::from(handshake::NO_ZEROES) != 0,
        })
    }
}

/// What is offered, the same for all connections.
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) export: Arc<dyn Export>,
}

impl Offer {
    /// The configured name, or the empty one that asks for the default export.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// What client and server have agreed on for the transmission phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Replies come in chunks.
    pub(super) structured: bool,
    /// base:allocation may be asked for.
    pub(super) allocation: bool,
}

/// What happens after an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The client sends another option.
    Option,
    /// Requests follow.
    Transmission,
    /// A TLS handshake follows.
    StartTls,
    /// The connection ends in good order.
    Close,
    /// The client asked for an unknown export by the option that knows no error reply.
    UnknownExport,
    /// The client may not send this option now, and could not read an error reply.
    NotAllowed,
}

/// One connection's negotiation.
pub(super) struct Negotiation<'a> {
    pub(super) offer: &'a Offer,
    pub(super) client: ClientFlags,
    pub(super) tls: TlsPhase,
    pub(super) agreed: Agreed,
}

impl Negotiation<'_> {
    /// Answers one option: appends the bytes to send to `out` and says what comes next.
    pub(super) fn answer(&mut self, code: u32, data: &[u8], out: &mut BytesMut) -> Next {
        if !self.client.fixed_newstyle && code != option::EXPORT_NAME {
            return Next::NotAllowed;
        }
        if self.tls == TlsPhase::Required && !matches!(code, option::STARTTLS | option::ABORT) {
            if code == option::EXPORT_NAME {
                return Next::NotAllowed;
            }
            error(out, code, reply::ERR_TLS_REQD, "this server speaks only over TLS: send STARTTLS first");
            return Next::Option;
        }
        match code {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                option_reply(out, code, reply::ACK, &[]);
                return Next::Close;
            }
            option::STARTTLS => return self.start_tls(data, out),
            option::LIST => self.list(data, out),
            option::INFO | option::GO => return self.info(code, data, out),
            option::STRUCTURED_REPLY => self.structured_reply(data, out),
            option::LIST_META_CONTEXT => meta_context::list(self, data, out),
            option::SET_META_CONTEXT => meta_context::set(self, data, out),
            _ => error(out, code, reply::ERR_UNSUP, "this server does not know the option"),
        }
        Next::Option
    }

    fn export_name(&self, name: &[u8], out: &mut BytesMut) -> Next {
        if !self.offer.has(name) {
            return Next::UnknownExport;
        }
        out.put_u64(self.offer.export.size());
        out.put_u16(self.transmission_flags());
        if !self.client.no_zeroes {
            out.put_bytes(0, EXPORT_NAME_ZEROES);
        }
        Next::Transmission
    }

    fn start_tls(&self, data: &[u8], out: &mut BytesMut) -> Next {
        let code = option::STARTTLS;
        match self.tls {
            TlsPhase::Off => error(out, code, reply::ERR_POLICY, "TLS is not configured on this server"),
            TlsPhase::Active => error(out, code, reply::ERR_INVALID, "TLS is already in force"),
            TlsPhase::Required if !data.is_empty() => error(out, code, reply::ERR_INVALID, "STARTTLS carries no data"),
            TlsPhase::Required => {
                option_reply(out, code, reply::ACK, &[]);
                return Next::StartTls;
            }
        }
        Next::Option
    }

    fn list(&self, data: &[u8], out: &mut BytesMut) {
        if !data.is_empty() {
            return error(out, option::LIST, reply::ERR_INVALID, "LIST carries no data");
        }
        let mut entry = BytesMut::new();
        entry.put_u32(u32::try_from(self.offer.name.len()).expect("the name's length was checked at start"));
        entry.put_slice(self.offer.name.as_bytes());
        option_reply(out, option::LIST, reply::SERVER, &entry);
        option_reply(out, option::LIST, reply::ACK, &[]);
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut BytesMut) {
        let code = option::STRUCTURED_REPLY;
        if !data.is_empty() {
            error(out, code, reply::ERR_INVALID, "STRUCTURED_REPLY carries no data");
        } else if self.agreed.structured {
            error(out, code, reply::ERR_INVALID, "structured replies are already agreed");
        } else {
            self.agreed.structured = true;
            option_reply(out, code, reply::ACK, &[]);
        }
    }

    /// INFO and GO differ only in what follows. Block sizes are always told, asked or not: a client that ignores them
    /// gets EINVAL for what does not fit rather than silent rounding.
    fn info(&self, code: u32, data: &[u8], out: &mut BytesMut) -> Next {
        let Some((name, wants_name)) = parse_info(data) else {
            error(out, code, reply::ERR_INVALID, "the option's lengths do not add up");
            return Next::Option;
        };
        if !self.offer.has(name) {
            error(out, code, reply::ERR_UNKNOWN, "no export of that name is here: ask with LIST");
            return Next::Option;
        }
        let export = &self.offer.export;
        let mut item = BytesMut::new();
        item.put_u16(info::EXPORT);
        item.put_u64(export.size());
        item.put_u16(self.transmission_flags());
        option_reply(out, code, reply::INFO, &item);
        if wants_name {
            item.clear();
            item.put_u16(info::NAME);
            item.put_slice(self.offer.name.as_bytes());
            option_reply(out, code, reply::INFO, &item);
        }
        item.clear();
        item.put_u16(info::BLOCK_SIZE);
        item.put_u32(export.minimum_block());
        item.put_u32(PREFERRED_BLOCK_BYTES);
        item.put_u32(PAYLOAD_BYTES_MAX);
        option_reply(out, code, reply::INFO, &item);
        option_reply(out, code, reply::ACK, &[]);
        if code == option::GO { Next::Transmission } else { Next::Option }
    }

    /// What the export can do on this connection.
    pub(super) fn transmission_flags(&self) -> u16 {
        let mut flags =
            transmission::HAS_FLAGS | transmission::SEND_FLUSH | transmission::SEND_FUA | transmission::CAN_MULTI_CONN;
        if self.offer.export.read_only() {
            flags |= transmission::READ_ONLY;
        } else {
            flags |= transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES;
            if self.offer.export.fast_zero() {
                flags |= transmission::SEND_FAST_ZERO;
            }
        }
        if self.agreed.structured {
            flags |= transmission::SEND_DF;
        }
        flags
    }
}

/// Name, and whether the client wants it back in its canonical form.
fn parse_info(data: &[u8]) -> Option<(&[u8], bool)> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let mut wants_name = false;
    for _ in 0..fields.u16()? {
        wants_name |= fields.u16()? == info::NAME;
    }
    fields.is_empty().then_some((name, wants_name))
}

/// Appends a reply to an option.
pub(super) fn option_reply(out: &mut BytesMut, code: u32, kind: u32, payload: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(code);
    out.put_u32(kind);
    out.put_u32(u32::try_from(payload.len()).expect("replies to options are short"));
    out.put_slice(payload);
}

/// Appends an error reply with a sentence for the person at the other side.
pub(super) fn error(out: &mut BytesMut, code: u32, kind: u32, message: &str) {
    option_reply(out, code, kind, message.as_bytes());
}

#[cfg(test)]
#[path = "negotiation_tests.rs"]
mod tests;
