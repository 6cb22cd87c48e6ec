//! TLS 1.3 with AES-256-GCM over loopback, and nothing else: what any program can carry from one process's memory to
//! another's, and what it costs both ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// Bytes of a write.
const PART: usize = 64 << 10;

/// Sends so many bytes of the data, over and over, through one connection.
pub fn send(data: &[u8], bytes: u64) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate = made.cert.der().clone();
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let receiver = std::thread::spawn(move || -> Result<u64> {
        let (tcp, _) = listener.accept()?;
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(server))?, tcp);
        let (mut buffer, mut received) = (vec![0; PART], 0);
        while received < bytes {
            let read = stream.read(&mut buffer)? as u64;
            ensure!(read > 0, "the sender ended early");
            received += read;
        }
        Ok(received)
    });
    let connection = ClientConnection::new(Arc::new(client), "localhost".try_into()?)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    let (mut left, mut parts) = (bytes as usize, data.chunks(PART).cycle());
    while left > 0 {
        let part = parts.next().context("data are not empty")?;
        let part = &part[..part.len().min(left)];
        stream.write_all(part)?;
        left -= part.len();
    }
    stream.flush()?;
    let suite = stream.conn.negotiated_cipher_suite().context("a handshake was made")?.suite();
    ensure!(suite == rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, "{suite:?} is not the suite of the comparison");
    let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(received == bytes, "{received} of {bytes} bytes came through TLS");
    Ok(())
}
