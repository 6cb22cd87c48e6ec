//! The list of revoked certificates: what it holds, and who asks it.
//!
//! ```text
//! ca.crl      beside ca.crt: a CRL (RFC 5280) in PEM, signed by the CA. `farshore revoke` makes and replaces it.
//! ```
//! What must hold:
//! - Whoever verifies a peer's certificate asks the list as it is then: the file is read again when the last look at it is
//!   a second old, so a new list takes effect without a restart.
//! - A connection that stands asks too, again and again (see [`Trust`]), and ends within [`CUT_WITHIN`] of a list that
//!   revokes its peer.
//! - It fails closed: while the file cannot be read, is damaged, was signed by somebody else, or was taken away or replaced
//!   by an older one during the life of the process, nobody new is let in. Connections that stand are judged by the last
//!   good list, so that a file caught in the middle of a copy does not end replication.
//!
//! A file that was never there means that nobody was revoked. There is no date after which a list is refused: the CA's key
//! may be kept away from the machines, and a site must not fall silent because nobody took it out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::Timestamp;
use rustls::{CertificateError, OtherError};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::files::{credentials, read_if_there, read_pem};
use crate::{Peer, TransportError};

/// A connection whose peer is revoked ends this long after the list says so, at the latest.
pub const CUT_WITHIN: Duration = Duration::from_secs(5);

/// A look at the file holds this long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A connection that stands asks this often. With the age of a look it stays well below [`CUT_WITHIN`].
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(2);

/// Lists in one file: one for each CA that is trusted.
const LISTS_MAX: usize = 8;

/// Bytes of a serial number (RFC 5280, section 4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;

/// The number by which a CA tells its certificates apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From big-endian bytes, as in a certificate.
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Self(bytes[zeros..].to_vec())
    }

    /// Of a certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| format!("not one: {e}"))?;
        Ok(Self::new(parsed.raw_serial()))
    }

    /// Big-endian bytes without leading zeros.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write the serial number in hexadecimal, as `openssl x509 -serial` shows it".to_owned();
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
        if digits.is_empty() || digits.len() > 2 * SERIAL_BYTES_MAX || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(bad());
        }
        let padded = [if digits.len() % 2 == 1 { "0" } else { "" }, &String::from_utf8_lossy(&digits)].concat();
        let byte = |at: usize| u8::from_str_radix(&padded[at..at + 2], 16).map_err(|_| bad());
        let bytes = (0..padded.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>()?;
        let serial = Self::new(&bytes);
        // No certificate has the number zero (RFC 5280, section 4.1.2.2), and a list cannot hold it.
        if serial.0.is_empty() { Err(bad()) } else { Ok(serial) }
    }
}

/// A certificate that a CA issued, as far as revoking it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Its number.
    pub serial: Serial,
    /// Whom it names, for messages.
    pub holder: String,
}

impl Issued {
    /// Reads a certificate's file and makes sure that the CA in the file `ca` issued it, whether or not it is still valid.
    ///
    /// # Errors
    /// [`TransportError::Credentials`] names the file that cannot be used: revoking by mistake what is another site's, or
    /// the CA itself, would only look like safety.
    pub fn read(ca: &Path, certificate: &Path) -> Result<Self, TransportError> {
        let trusted = crate::tls::certificates(ca, &read_pem(ca, "the CA's certificate", CA_REMEDY)?)?;
        let pem = read_pem(certificate, "the certificate", "name the file of the certificate to revoke")?;
        let chain = crate::tls::certificates(certificate, &pem)?;
        let refused = |why: &str| credentials(certificate, why);
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&chain[0]).map_err(|error| refused(&format!("not one: {error}")))?;
        if parsed.is_ca() {
            return Err(refused("this is a CA's certificate, which cannot be revoked: make a new site for a new CA"));
        }
        let issued = trusted.iter().any(|ca| {
            x509_parser::parse_x509_certificate(ca)
                .is_ok_and(|(_, ca)| parsed.verify_signature(Some(ca.public_key())).is_ok())
        });
        if !issued {
            return Err(refused(
                "this site's CA did not issue it, so it opens nothing here: revoke it where it is from",
            ));
        }
        let subject = parsed.subject().to_string();
        let holder = crate::tls::peer_of(&chain[0]).map_or_else(|_| subject, |peer| peer.to_string());
        Ok(Self { serial: Serial::new(parsed.raw_serial()), holder })
    }
}

/// Which certificates are revoked, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevocationList {
    number: u64,
    revoked: BTreeMap<Serial, u64>,
}

impl RevocationList {
    /// Where the list of a CA lies: beside its certificate.
    pub fn file(ca: &Path) -> PathBuf {
        ca.with_extension("crl")
    }

    /// Reads the list of the CA whose certificate is in the file `ca`; empty if it has none.
    ///
    /// # Errors
    /// [`TransportError::Credentials`] if a list is there and cannot be used.
    pub fn load(ca: &Path) -> Result<Self, TransportError> {
        let trusted = crate::tls::certificates(ca, &read_pem(ca, "the CA's certificate", CA_REMEDY)?)?;
        let file = Self::file(ca);
        match read_if_there(&file, WHAT)? {
            None => Ok(Self::default()),
            Some(pem) => Self::parse(&pem, &trusted).map_err(|why| credentials(&file, why)),
        }
    }

    /// Counts up with every change.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Every revoked certificate, and since when it is.
    pub fn certificates(&self) -> impl Iterator<Item = (&Serial, Timestamp)> {
        self.revoked.iter().map(|(serial, at)| (serial, Timestamp(at.saturating_mul(1_000_000))))
    }

    /// Whether it names this certificate.
    pub fn names(&self, serial: &Serial) -> bool {
        self.revoked.contains_key(serial)
    }

    /// The next list, which revokes these certificates too.
    pub fn with(mut self, serials: impl IntoIterator<Item = Serial>) -> Self {
        self.number += 1;
        for serial in serials {
            self.revoked.entry(serial).or_insert_with(crate::clock::unix_seconds);
        }
        self
    }

    /// Seconds since 1970 of each revocation.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Serial, u64)> {
        self.revoked.iter().map(|(serial, at)| (serial, *at))
    }

    /// All lists in a PEM file, each signed by one of the CAs.
    fn parse(pem: &[u8], trusted: &[CertificateDer<'_>]) -> Result<Self, String> {
        let mut all = Self::default();
        let mut found = 0;
        for list in CertificateRevocationListDer::pem_slice_iter(pem) {
            let list = list.map_err(|error| format!("{WHAT} is damaged ({error}): {REMEDY}"))?;
            found += 1;
            if found > LISTS_MAX {
                return Err(format!("it holds more than {LISTS_MAX} lists: {REMEDY}"));
            }
            let one = Self::parse_one(&list, trusted).map_err(|why| format!("{WHAT} {why}: {REMEDY}"))?;
            all.number = all.number.max(one.number);
            all.revoked.extend(one.revoked);
        }
        if found == 0 {
            return Err(format!("it holds no list of revoked certificates: {REMEDY}"));
        }
        Ok(all)
    }

    fn parse_one(der: &[u8], trusted: &[CertificateDer<'_>]) -> Result<Self, String> {
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| format!("is damaged ({error})"))?;
        if !rest.is_empty() {
            return Err("is damaged (bytes are left over behind it)".into());
        }
        let signed = trusted.iter().any(|ca| {
            x509_parser::parse_x509_certificate(ca).is_ok_and(|(_, ca)| {
                ca.subject().as_raw() == list.issuer().as_raw() && list.verify_signature(ca.public_key()).is_ok()
            })
        });
        if !signed {
            return Err("is not signed by this site's CA".into());
        }
        let number = match list.crl_number().map(|number| number.to_u64_digits()).as_deref() {
            None | Some([]) => 0,
            Some([number]) => *number,
            Some(_) => return Err("has a number that no list of ours has".into()),
        };
        let revoked = list.iter_revoked_certificates().map(|one| {
            let at = u64::try_from(one.revocation_date.timestamp()).unwrap_or(0);
            (Serial::new(one.raw_serial()), at)
        });
        Ok(Self { number, revoked: revoked.collect() })
    }
}

const WHAT: &str = "the list of revoked certificates";
const CA_REMEDY: &str = "name the directory that `farshore init` made";
const REMEDY: &str = "nobody is let in until the newest ca.crl from the host that has ca.key is put there";

/// The list as a running process asks it.
pub(crate) struct Revocations {
    /// None for an identity from memory, which has no list.
    file: Option<PathBuf>,
    trusted: Vec<CertificateDer<'static>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    /// As last read; nothing while there is no file.
    bytes: Option<Vec<u8>>,
    /// The last list that could be used.
    good: Arc<RevocationList>,
    /// Why the file as it is now cannot be.
    fault: Option<String>,
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Revocations {
    /// Nobody is revoked.
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self { file: None, trusted: Vec::new(), state: Mutex::default() })
    }

    /// The list beside a CA's certificate; refused if it cannot be used now.
    pub(crate) fn beside(ca: &Path, trusted: Vec<CertificateDer<'static>>) -> Result<Arc<Self>, TransportError> {
        let file = RevocationList::file(ca);
        let all = Self { file: Some(file.clone()), trusted, state: Mutex::default() };
        match all.look().fault {
            None => Ok(Arc::new(all)),
            Some(why) => Err(credentials(&file, why)),
        }
    }

    /// Whether a certificate that is shown now may be taken.
    pub(crate) fn admit(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let look = self.look();
        if let Some(why) = look.fault {
            let file = self.file.as_deref().unwrap_or(Path::new("")).display();
            let unusable = ListUnusable(format!("{file}: {why}"));
            return Err(CertificateError::Other(OtherError(Arc::new(unusable))).into());
        }
        let serial = Serial::of(certificate).map_err(|_| CertificateError::BadEncoding)?;
        match look.good.names(&serial) {
            true => Err(CertificateError::Revoked.into()),
            false => Ok(()),
        }
    }

    /// Whether a certificate that was taken before was revoked since.
    pub(crate) fn lists(&self, serial: &Serial) -> bool {
        self.file.is_some() && self.look().good.names(serial)
    }

    /// The next look is at the file, however young the last one is.
    #[cfg(test)]
    pub(crate) fn look_again(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.looked = state.looked.and_then(|then| then.checked_sub(LOOK_EVERY));
    }

    /// The list as of at most [`LOOK_EVERY`] ago. It reads a small local file, at most once a second, so it may be called
    /// from a task.
    fn look(&self) -> Look {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file
            && state.looked.is_none_or(|then| then.elapsed() >= LOOK_EVERY)
        {
            state.take(file, read_if_there(file, WHAT), &self.trusted);
            state.looked = Some(Instant::now());
        }
        Look { good: Arc::clone(&state.good), fault: state.fault.clone() }
    }
}

struct Look {
    good: Arc<RevocationList>,
    fault: Option<String>,
}

impl State {
    /// Judges what was read. A fault and its end are each logged once.
    fn take(
        &mut self,
        file: &Path,
        read: Result<Option<Vec<u8>>, TransportError>,
        trusted: &[CertificateDer<'static>],
    ) {
        let judged = match read {
            Ok(bytes) if bytes == self.bytes && self.looked.is_some() => return,
            Ok(bytes) => {
                let judged = self.judge(bytes.as_deref(), trusted);
                self.bytes = bytes;
                judged
            }
            // What was not read is not what was read last.
            Err(error) => {
                self.bytes = None;
                Err(match error {
                    TransportError::Credentials { why, .. } => format!("{why}: {REMEDY}"),
                    other => format!("{other}: {REMEDY}"),
                })
            }
        };
        match judged {
            Ok(list) => {
                if *self.good != list || self.fault.is_some() {
                    let (number, revoked) = (list.number, list.revoked.len());
                    tracing::info!(file = %file.display(), number, revoked, "took the list of revoked certificates");
                }
                (self.good, self.fault) = (Arc::new(list), None);
            }
            Err(why) => {
                if self.fault.as_ref() != Some(&why) {
                    tracing::error!(file = %file.display(), why, "nobody is let in: the list of revoked certificates cannot be used");
                }
                self.fault = Some(why);
            }
        }
    }

    fn judge(&self, bytes: Option<&[u8]>, trusted: &[CertificateDer<'static>]) -> Result<RevocationList, String> {
        let Some(bytes) = bytes else {
            return match self.good.number {
                0 => Ok(RevocationList::default()),
                number => Err(format!("{WHAT} (number {number}) was taken away: {REMEDY}")),
            };
        };
        let list = RevocationList::parse(bytes, trusted)?;
        if list.number < self.good.number {
            let (old, new) = (list.number, self.good.number);
            return Err(format!("{WHAT} is older (number {old}) than the one in force (number {new}): {REMEDY}"));
        }
        Ok(list)
    }
}

/// Why a list is no judge; told in full to our own log, and to the peer as an alert alone.
#[derive(Debug)]
struct ListUnusable(String);

impl fmt::Display for ListUnusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ListUnusable {}

/// What a connection's right to stand rests on: asked by its reader before each frame and while it waits for one.
pub(crate) struct Trust {
    revocations: Arc<Revocations>,
    serial: Serial,
    peer: Peer,
    asked: Instant,
}

impl Trust {
    pub(crate) fn new(
        revocations: Arc<Revocations>,
        certificate: &CertificateDer<'_>,
        peer: Peer,
    ) -> Result<Self, String> {
        Ok(Self { revocations, serial: Serial::of(certificate)?, peer, asked: Instant::now() })
    }

    /// Why the connection must end, if it must. Cheap: most calls find that the last answer is young enough.
    pub(crate) fn lapsed(&mut self) -> Option<String> {
        if self.asked.elapsed() < LOOK_EVERY {
            return None;
        }
        self.asked = Instant::now();
        let gone = self.revocations.lists(&self.serial);
        gone.then(|| format!("its certificate for {} (serial {}) was revoked", self.peer, self.serial))
    }
}
