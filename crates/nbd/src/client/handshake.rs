//! The client's side of the handshake.
//!
//! A server is believed only as far as the protocol goes: every reply must carry its magic and the option it answers,
//! and is bounded in length and number, so that a hostile or broken server costs an error and nothing more.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;

use crate::Error;
use crate::protocol::{
    BASE_ALLOCATION, Fields, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX,
    handshake, info, option, reply, transmission,
};
use crate::stream::{ByteStream, read_bytes};

/// Bytes of one reply to an option that we read: two strings and some numbers.
const REPLY_BYTES_MAX: u32 = 2 * STRING_BYTES_MAX as u32 + 64;
/// Replies to one option that we read; bounds how many exports a list may name.
const REPLIES_MAX: usize = 4096;
/// Characters of a server's message that we pass on.
const MESSAGE_CHARS_MAX: usize = 256;

/// How to speak TLS.
pub(super) struct Tls {
    pub(super) config: Arc<rustls::ClientConfig>,
    pub(super) server_name: ServerName<'static>,
}

/// What the server told about the export, and what was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Details {
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) minimum_block: u32,
    pub(super) payload_max: u32,
    pub(super) structured: bool,
    /// The id of base:allocation, if it was agreed.
    pub(super) allocation: Option<u32>,
}

/// A reply to an option.
struct OptionReply {
    kind: u32,
    payload: BytesMut,
}

/// Greets, and starts TLS if asked to.
pub(super) async fn begin(mut stream: ByteStream, tls: Option<Tls>) -> Result<ByteStream, Error> {
    let greeting = read_bytes(&mut stream, 18).await?;
    let mut fields = Fields::new(&greeting);
    expect_magic(&mut fields, "an NBD greeting", GREETING_MAGIC)?;
    expect_magic(&mut fields, "a newstyle greeting", OPTION_MAGIC)?;
    let flags = fields.u16().ok_or(Error::Reply("greeting too short"))?;
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(Error::Reply("the server is too old: it does not speak fixed newstyle"));
    }
    let ours = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_u32(u32::from(ours)).await?;
    stream.flush().await?;
    let Some(tls) = tls else { return Ok(stream) };
    send(&mut stream, option::STARTTLS, &[]).await?;
    acknowledged(&mut stream, option::STARTTLS, "TLS").await?;
    let connector = TlsConnector::from(tls.config);
    Ok(Box::new(connector.connect(tls.server_name, stream).await?))
}

fn expect_magic(fields: &mut Fields<'_>, what: &'static str, magic: u64) -> Result<(), Error> {
    match fields.u64() {
        Some(found) if found == magic => Ok(()),
        found => Err(Error::Magic { what, found: found.unwrap_or(0) }),
    }
}

/// Names of the exports a server lists.
pub(super) async fn list(stream: &mut ByteStream) -> Result<Vec<String>, Error> {
    send(stream, option::LIST, &[]).await?;
    let mut names = Vec::new();
    for _ in 0..REPLIES_MAX {
        let answer = receive(stream, option::LIST).await?;
        match answer.kind {
            reply::ACK => {
                send(stream, option::ABORT, &[]).await?;
                return Ok(names);
            }
            reply::SERVER => {
                let name = Fields::new(&answer.payload).string().ok_or(Error::Reply("a listed name is cut off"))?;
                names.push(String::from_utf8_lossy(name).into_owned());
            }
            _ => return Err(refused("LIST", &answer)),
        }
    }
    Err(Error::Reply("the list of exports does not end"))
}

/// Agrees on structured replies and base:allocation where the server has them, and enters transmission.
pub(super) async fn go(stream: &mut ByteStream, export: &str) -> Result<Details, Error> {
    if export.len() > STRING_BYTES_MAX {
        return Err(Error::Refused { what: "the export", reason: format!("its name is {} bytes long", export.len()) });
    }
    send(stream, option::STRUCTURED_REPLY, &[]).await?;
    let structured = match receive(stream, option::STRUCTURED_REPLY).await? {
        OptionReply { kind: reply::ACK, .. } => true,
        OptionReply { kind: reply::ERR_TLS_REQD, .. } => {
            let reason = "it speaks only over TLS: connect with TLS".to_owned();
            return Err(Error::Refused { what: "to speak in the clear", reason });
        }
        OptionReply { kind, .. } if kind & reply::ERROR_BIT != 0 => false,
        _ => return Err(Error::Reply("unexpected answer to STRUCTURED_REPLY")),
    };
    let allocation = if structured { allocation(stream, export).await? } else { None };
    let mut data = BytesMut::new();
    put_string(&mut data, export);
    data.put_u16(1);
    data.put_u16(info::BLOCK_SIZE);
    send(stream, option::GO, &data).await?;
    let mut details =
        Details { size: 0, flags: 0, minimum_block: 1, payload_max: PAYLOAD_BYTES_MAX, structured, allocation };
    for _ in 0..REPLIES_MAX {
        let answer = receive(stream, option::GO).await?;
        match answer.kind {
            reply::ACK if details.flags & transmission::HAS_FLAGS == 0 => {
                return Err(Error::Reply("the server did not describe the export"));
            }
            reply::ACK => return Ok(details),
            reply::INFO => {
                read_info(&answer.payload, &mut details).ok_or(Error::Reply("an information is malformed"))?
            }
            _ => return Err(refused("the export", &answer)),
        }
    }
    Err(Error::Reply("the answer to GO does not end"))
}

/// `None` if the information is malformed or absurd; unknown kinds are passed over.
fn read_info(payload: &[u8], details: &mut Details) -> Option<()> {
    let mut fields = Fields::new(payload);
    match fields.u16()? {
        info::EXPORT => {
            details.size = fields.u64()?;
            details.flags = fields.u16()?;
        }
        info::BLOCK_SIZE => {
            details.minimum_block = fields.u32()?;
            let _preferred = fields.u32()?;
            details.payload_max = fields.u32()?.min(PAYLOAD_BYTES_MAX);
            if !details.minimum_block.is_power_of_two() || details.payload_max < details.minimum_block {
                return None;
            }
        }
        _ => {}
    }
    Some(())
}

async fn allocation(stream: &mut ByteStream, export: &str) -> Result<Option<u32>, Error> {
    let mut data = BytesMut::new();
    put_string(&mut data, export);
    data.put_u32(1);
    put_string(&mut data, BASE_ALLOCATION);
    send(stream, option::SET_META_CONTEXT, &data).await?;
    let mut id = None;
    for _ in 0..REPLIES_MAX {
        let answer = receive(stream, option::SET_META_CONTEXT).await?;
        match answer.kind {
            reply::ACK => return Ok(id),
            reply::META_CONTEXT => {
                let mut fields = Fields::new(&answer.payload);
                let found = fields.u32().ok_or(Error::Reply("a metadata context is cut off"))?;
                if fields.rest() == BASE_ALLOCATION.as_bytes() {
                    id = Some(found);
                }
            }
            kind if kind & reply::ERROR_BIT != 0 => return Ok(None),
            _ => return Err(Error::Reply("unexpected answer to SET_META_CONTEXT")),
        }
    }
    Err(Error::Reply("the answer to SET_META_CONTEXT does not end"))
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.put_u32(u32::try_from(text.len()).expect("names were checked against the protocol's limit"));
    out.put_slice(text.as_bytes());
}

async fn send(stream: &mut ByteStream, code: u32, data: &[u8]) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(16 + data.len());
    out.put_u64(OPTION_MAGIC);
    out.put_u32(code);
    out.put_u32(u32::try_from(data.len()).expect("our options are short"));
    out.put_slice(data);
    stream.write_all(&out).await?;
    stream.flush().await
}

async fn acknowledged(stream: &mut ByteStream, code: u32, what: &'static str) -> Result<(), Error> {
    let answer = receive(stream, code).await?;
    if answer.kind == reply::ACK { Ok(()) } else { Err(refused(what, &answer)) }
}

async fn receive(stream: &mut ByteStream, code: u32) -> Result<OptionReply, Error> {
    let header = read_bytes(stream, 20).await?;
    let mut fields = Fields::new(&header);
    expect_magic(&mut fields, "a reply to an option", OPTION_REPLY_MAGIC)?;
    let whole = "20 bytes hold the magic and three numbers";
    let (answered, kind, len) = (fields.u32().expect(whole), fields.u32().expect(whole), fields.u32().expect(whole));
    if answered != code {
        return Err(Error::Reply("the server answered another option than we sent"));
    }
    if len > REPLY_BYTES_MAX {
        return Err(Error::Reply("a reply to an option is longer than any real one"));
    }
    Ok(OptionReply { kind, payload: read_bytes(stream, len as usize).await? })
}

fn refused(what: &'static str, answer: &OptionReply) -> Error {
    let meaning = match answer.kind {
        reply::ERR_UNSUP => "it does not know the option",
        reply::ERR_POLICY => "its configuration forbids it",
        reply::ERR_INVALID => "it finds the request invalid",
        reply::ERR_TLS_REQD => "it speaks only over TLS: connect with TLS",
        reply::ERR_UNKNOWN => "it has no export of that name",
        reply::ERR_TOO_BIG => "it finds the request too big",
        _ => "for a reason of its own",
    };
    let message: String = String::from_utf8_lossy(&answer.payload)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(MESSAGE_CHARS_MAX)
        .collect();
    let reason = if message.is_empty() { meaning.to_owned() } else { format!("{meaning} ({message})") };
    Error::Refused { what, reason }
}
