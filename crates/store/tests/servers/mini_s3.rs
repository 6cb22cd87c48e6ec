//! The few lines of S3 that one object needs, over real HTTP, with good or bad manners: what object_store's client makes of
//! a server's answers is part of what is tested. Used by the tests of this crate and by the end-to-end tests.

#![allow(dead_code, reason = "each program of tests needs some of the manners")]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How it treats what a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// As S3 does.
    Good,
    /// `If-None-Match` is not looked at, as servers older than it do.
    IgnoresCondition,
    /// `If-None-Match` is answered by 501.
    RefusesCondition,
    /// `Range` is not looked at.
    IgnoresRange,
}

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A running server; it ends when dropped.
pub struct MiniS3 {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl MiniS3 {
    pub async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let objects = Objects::default();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let objects = objects.clone();
                tokio::spawn(async move {
                    // A client that goes away ends its connection.
                    let _gone = serve(stream, manners, objects).await;
                });
            }
        });
        Self { address, accepting }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for MiniS3 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

async fn serve(stream: TcpStream, manners: Manners, objects: Objects) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read_request(&mut stream).await? {
        let (status, headers, body) = answer(&asked, manners, &objects);
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Asked>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let header = |line: &String| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()));
    let headers: BTreeMap<_, _> = lines[1..].iter().filter_map(header).collect();
    let length = headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Asked { method, path, headers, body }))
}

fn answer(asked: &Asked, manners: Manners, objects: &Objects) -> (&'static str, String, Vec<u8>) {
    let none = (String::new(), Vec::new());
    let plain = |status| (status, none.0.clone(), none.1.clone());
    let mut objects = objects.lock().expect("not poisoned");
    let conditional = asked.headers.contains_key("if-none-match");
    match asked.method.as_str() {
        "PUT" if conditional && manners == Manners::RefusesCondition => plain("501 Not Implemented"),
        "PUT" if conditional && manners != Manners::IgnoresCondition && objects.contains_key(&asked.path) => {
            plain("412 Precondition Failed")
        }
        "PUT" => {
            objects.insert(asked.path.clone(), asked.body.clone());
            ("200 OK", "etag: \"1\"\r\n".to_owned(), Vec::new())
        }
        "GET" | "HEAD" => match objects.get(&asked.path) {
            None => plain("404 Not Found"),
            Some(object) => read(asked, manners, object),
        },
        "DELETE" => {
            objects.remove(&asked.path);
            plain("204 No Content")
        }
        _ => plain("400 Bad Request"),
    }
}

fn read(asked: &Asked, manners: Manners, object: &[u8]) -> (&'static str, String, Vec<u8>) {
    let about = "etag: \"1\"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";
    let bounds = asked.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    match bounds {
        Some((start, end)) if manners != Manners::IgnoresRange => {
            let (start, end): (usize, usize) = (start.parse().expect("a number"), end.parse().expect("a number"));
            let end = (end + 1).min(object.len());
            let range = format!("{about}content-range: bytes {start}-{}/{}\r\n", end - 1, object.len());
            ("206 Partial Content", range, object[start..end].to_vec())
        }
        _ => ("200 OK", about.to_owned(), object.to_vec()),
    }
}
