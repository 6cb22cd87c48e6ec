//! A stream as its ends see it: bytes in order, or a reset. An end whose host is dead does nothing any more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{End, Kind, Network, PACKET_BYTES, State, WINDOW_BYTES};
use crate::world::Boot;

/// One end of a stream between two hosts.
pub struct SimStream {
    pub(super) network: Network,
    pub(super) id: u64,
    pub(super) side: usize,
    pub(super) boot: Boot,
}

impl SimStream {
    fn with_end<T>(&self, act: impl FnOnce(&mut State, u64, usize) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if !self.boot.alive() {
            return Poll::Pending;
        }
        let mut state = self.network.state();
        if state.streams.get(&self.id).is_none_or(|stream| stream.ends[self.side].reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        act(&mut state, self.id, self.side)
    }
}

fn end_of(state: &mut State, id: u64, side: usize) -> &mut End {
    &mut state.streams.get_mut(&id).expect("checked by with_end").ends[side]
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with_end(|state, id, side| {
            let end = end_of(state, id, side);
            let Some(front) = end.ready.front_mut() else {
                if end.ended {
                    return Poll::Ready(Ok(()));
                }
                end.reader = Some(context.waker().clone());
                return Poll::Pending;
            };
            let part = front.split_to(front.len().min(buffer.remaining()));
            if front.is_empty() {
                end.ready.pop_front();
            }
            buffer.put_slice(&part);
            let peer = end_of(state, id, 1 - side);
            peer.unread_bytes = peer.unread_bytes.saturating_sub(part.len());
            if let Some(writer) = peer.writer.take() {
                writer.wake();
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let network = self.network.clone();
        self.with_end(|state, id, side| {
            let end = end_of(state, id, side);
            if end.unread_bytes >= WINDOW_BYTES {
                end.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            let part = &data[..data.len().min(PACKET_BYTES)];
            let number = end.next_out;
            end.next_out += 1;
            end.unread_bytes += part.len();
            network.send(state, id, side, Kind::Data { number, bytes: Bytes::copy_from_slice(part) });
            Poll::Ready(Ok(part.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let network = self.network.clone();
        self.with_end(|state, id, side| {
            let end = end_of(state, id, side);
            let number = end.next_out;
            end.next_out += 1;
            network.send(state, id, side, Kind::Fin { number });
            Poll::Ready(Ok(()))
        })
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let network = self.network.clone();
        let mut state = network.state();
        network.close(&mut state, self.id, self.side);
    }
}
