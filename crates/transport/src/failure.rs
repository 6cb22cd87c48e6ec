//! From what the TLS and QUIC libraries say to what the caller must do.
//!
//! Under TLS 1.3 a client has finished its handshake before the server has looked at its certificate, so a rejection
//! arrives as an alert at the first read. It is told apart here from a connection that merely ended.

use std::io;

use rustls::{AlertDescription, CertificateError, OtherError};

use crate::TransportError;

/// QUIC carries TLS alerts as error codes from here (RFC 9001, section 4.8).
const QUIC_CRYPTO_ERROR_FIRST: u64 = 0x100;

/// QUIC codes for TLS alerts end here.
const QUIC_CRYPTO_ERROR_LAST: u64 = 0x1ff;

/// A connection that stood has failed.
pub(crate) fn stream_error(peer: &str, source: io::Error) -> TransportError {
    match distrust(&source) {
        Some(why) => TransportError::Untrusted { peer: peer.to_owned(), why },
        None => TransportError::Closed { peer: peer.to_owned(), source },
    }
}

/// A connection could not be made.
pub(crate) fn connect_error(peer: &str, source: io::Error) -> TransportError {
    match distrust(&source) {
        Some(why) => TransportError::Untrusted { peer: peer.to_owned(), why },
        None => TransportError::Unreachable { peer: peer.to_owned(), source },
    }
}

/// A QUIC connection could not be made.
pub(crate) fn quic_error(peer: &str, error: quinn::ConnectionError) -> TransportError {
    connect_error(peer, io::Error::new(io::ErrorKind::NotConnected, error))
}

/// Why a failure means that one side does not accept the other's certificate; `None` when it means something else.
fn distrust(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?;
    if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
        return tls_distrust(tls);
    }
    let connection = if let Some(quinn::ReadError::ConnectionLost(lost)) = inner.downcast_ref() {
        lost
    } else if let Some(quinn::WriteError::ConnectionLost(lost)) = inner.downcast_ref() {
        lost
    } else if let Some(quinn::StoppedError::ConnectionLost(lost)) = inner.downcast_ref() {
        lost
    } else {
        inner.downcast_ref::<quinn::ConnectionError>()?
    };
    quic_distrust(connection)
}

fn tls_distrust(error: &rustls::Error) -> Option<String> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => Some("its certificate was revoked".into()),
        // Our own list of revoked certificates is no judge: the sentence says which file.
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => Some(why.to_string()),
        rustls::Error::InvalidCertificate(why) => Some(format!("its certificate was refused: {why}")),
        rustls::Error::NoCertificatesPresented => Some("it showed no certificate".into()),
        rustls::Error::AlertReceived(alert) => alert_distrust(*alert, "it refused our certificate"),
        _ => None,
    }
}

fn quic_distrust(error: &quinn::ConnectionError) -> Option<String> {
    // The reason comes from a stranger: it is quoted, so that it cannot forge lines in a log.
    let (code, reason, whose) = match error {
        quinn::ConnectionError::TransportError(ours) => {
            (u64::from(ours.code), ours.reason.clone(), "its certificate was refused")
        }
        quinn::ConnectionError::ConnectionClosed(theirs) => {
            let reason = String::from_utf8_lossy(&theirs.reason).into_owned();
            (u64::from(theirs.error_code), reason, "it refused our certificate")
        }
        _ => return None,
    };
    if !(QUIC_CRYPTO_ERROR_FIRST..=QUIC_CRYPTO_ERROR_LAST).contains(&code) {
        return None;
    }
    let alert = AlertDescription::from((code - QUIC_CRYPTO_ERROR_FIRST) as u8);
    let told = alert_distrust(alert, whose)?;
    Some(if reason.is_empty() { told } else { format!("{told} ({reason:?})") })
}

/// Alerts that speak of certificates; the rest speak of bugs or of something that is not Farshore.
fn alert_distrust(alert: AlertDescription, whose: &str) -> Option<String> {
    let why = match alert {
        AlertDescription::BadCertificate => "it is damaged or not signed by the site's CA",
        AlertDescription::UnsupportedCertificate => "it may not be used for this role",
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::CertificateExpired => "it has expired, or a clock is wrong",
        AlertDescription::CertificateUnknown => "it cannot be used",
        AlertDescription::UnknownCA => "it was issued by another CA",
        AlertDescription::AccessDenied => "access was denied",
        AlertDescription::CertificateRequired => "none was shown",
        AlertDescription::DecryptError => "its signature does not match",
        _ => return None,
    };
    Some(format!("{whose}: {why}"))
}
