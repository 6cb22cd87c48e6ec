//! The command's end of a control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Largest answer taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// A role answers a question about itself at once, or it hangs.
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// A role could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No role runs there.
    #[error("no role answers on {}", path.display())]
    Dead {
        /// The socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The role took the question but gave no usable answer.
    #[error("{} gave no usable answer: {why}", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The role said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks a role: GET without a body, POST with one. Bounded by `timeout`.
pub async fn call(path: &Path, route: &str, body: Option<&Value>, timeout: Duration) -> Result<Value, ControlError> {
    let no_answer = |why: String| ControlError::NoAnswer { path: path.to_owned(), why };
    tokio::time::timeout(timeout, exchange(path, route, body))
        .await
        .map_err(|_| no_answer(format!("nothing within {} s", timeout.as_secs())))?
}

async fn exchange(path: &Path, route: &str, body: Option<&Value>) -> Result<Value, ControlError> {
    let no_answer =
        |why: &dyn std::fmt::Display| ControlError::NoAnswer { path: path.to_owned(), why: why.to_string() };
    let stream =
        UnixStream::connect(path).await.map_err(|source| ControlError::Dead { path: path.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| no_answer(&e))?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(if body.is_some() { "POST" } else { "GET" })
        .uri(route)
        .header("host", "farshore")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
        .map_err(|e| no_answer(&e))?;
    let response = sender.send_request(request).await.map_err(|e| no_answer(&e))?;
    let status = response.status();
    let bytes =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| no_answer(&e))?.to_bytes();
    driver.abort();
    let text = String::from_utf8_lossy(&bytes);
    let value = serde_json::from_str::<Value>(&text).unwrap_or_else(|_| Value::String(text.into_owned()));
    if status.is_success() {
        return Ok(value);
    }
    let said = value.get("error").and_then(Value::as_str).map_or_else(|| value.to_string(), str::to_owned);
    Err(ControlError::Refused(said))
}
