//! The handshake on a byte stream: greeting, options, and the switch to TLS.
//!
//! Nothing is read ahead: bytes that follow STARTTLS in the clear are taken for TLS and fail there, so nobody can slip
//! options in before the encryption begins. Options are bounded in number and size, and the caller bounds the time.

use bytes::{BufMut, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::negotiation::{Agreed, ClientFlags, Negotiation, Next, Offer, TlsPhase, error};
use crate::Error;
use crate::protocol::{Fields, GREETING_MAGIC, OPTION_MAGIC, handshake, reply};
use crate::stream::{ByteStream, read_bytes};

/// Options one client may send; real ones send fewer than ten.
const OPTIONS_MAX: usize = 128;
/// Bytes of one option's data: several times the longest name and a good number of context queries.
pub(super) const OPTION_BYTES_MAX: u32 = 32 << 10;

/// A finished handshake: the stream requests come on and what was agreed, or nothing if the client said goodbye.
pub(super) type Handshake = Option<Agreement>;

/// Where a handshake ends well.
pub(super) struct Agreement {
    pub(super) stream: ByteStream,
    pub(super) agreed: Agreed,
    /// What the client showed, over TLS.
    pub(super) certificate: Option<CertificateDer<'static>>,
}

enum Outcome {
    Transmission(Agreed),
    StartTls,
    Closed,
}

/// Runs the handshake to its end.
pub(super) async fn run(mut stream: ByteStream, offer: &Offer, tls: Option<&TlsAcceptor>) -> Result<Handshake, Error> {
    let client = greet(&mut stream).await?;
    let phase = if tls.is_some() { TlsPhase::Required } else { TlsPhase::Off };
    match options(&mut stream, offer, client, phase).await? {
        Outcome::Closed => Ok(None),
        Outcome::Transmission(agreed) => Ok(Some(Agreement { stream, agreed, certificate: None })),
        Outcome::StartTls => {
            let acceptor = tls.expect("STARTTLS is accepted only where TLS is configured");
            let session = acceptor.accept(stream).await.map_err(Error::Tls)?;
            let certificate = session.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
            let mut secured: ByteStream = Box::new(session);
            match options(&mut secured, offer, client, TlsPhase::Active).await? {
                Outcome::Transmission(agreed) => Ok(Some(Agreement { stream: secured, agreed, certificate })),
                Outcome::Closed | Outcome::StartTls => Ok(None),
            }
        }
    }
}

async fn greet(stream: &mut ByteStream) -> Result<ClientFlags, Error> {
    let mut greeting = BytesMut::with_capacity(18);
    greeting.put_u64(GREETING_MAGIC);
    greeting.put_u64(OPTION_MAGIC);
    greeting.put_u16(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_all(&greeting).await?;
    stream.flush().await?;
    let flags = stream.read_u32().await?;
    ClientFlags::parse(flags).ok_or(Error::ClientFlags(flags))
}

async fn options(stream: &mut ByteStream, offer: &Offer, client: ClientFlags, tls: TlsPhase) -> Result<Outcome, Error> {
    let mut negotiation = Negotiation { offer, client, tls, agreed: Agreed::default() };
    let mut out = BytesMut::new();
    for _ in 0..OPTIONS_MAX {
        let (code, data) = read_option(stream).await?;
        let next = negotiation.answer(code, &data, &mut out);
        let sent = send(stream, &mut out).await;
        if next == Next::Close {
            // A client that aborts need not wait for our agreement.
            return Ok(Outcome::Closed);
        }
        sent?;
        match next {
            Next::Option | Next::Close => {}
            Next::Transmission => return Ok(Outcome::Transmission(negotiation.agreed)),
            Next::StartTls => return Ok(Outcome::StartTls),
            Next::UnknownExport => return Err(Error::UnknownExport),
            Next::NotAllowed => return Err(Error::OptionNotAllowed(code)),
        }
    }
    Err(Error::TooManyOptions(OPTIONS_MAX))
}

async fn send(stream: &mut ByteStream, out: &mut BytesMut) -> std::io::Result<()> {
    stream.write_all(out).await?;
    stream.flush().await?;
    out.clear();
    Ok(())
}

async fn read_option(stream: &mut ByteStream) -> Result<(u32, BytesMut), Error> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).await?;
    let mut fields = Fields::new(&header);
    let whole = "the header has exactly these fields";
    let magic = fields.u64().expect(whole);
    if magic != OPTION_MAGIC {
        return Err(Error::Magic { what: "an option", found: magic });
    }
    let (code, len) = (fields.u32().expect(whole), fields.u32().expect(whole));
    if len > OPTION_BYTES_MAX {
        let mut out = BytesMut::new();
        error(&mut out, code, reply::ERR_TOO_BIG, "the option is longer than this server reads");
        send(stream, &mut out).await?;
        return Err(Error::OptionTooLong { option: code, len });
    }
    Ok((code, read_bytes(stream, len as usize).await?))
}
