//! A connection on a thread of its own, with a runtime that nobody shares.
//!
//! Between threads a request costs wake-ups, each several times what a small write to cached pages takes. Here a request
//! that can be answered at once runs from the socket to the reply on one thread. What must hold: a request that has begun is
//! not cancelled with the connection, but goes on in the server's runtime; and once the server has given a
//! connection up, its thread ends as soon as nothing blocks it.

use std::io;
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::Service;
use super::listener::Accepted;

/// Serves one connection to its end; dropped, the connection is cut off.
pub(super) async fn connection(service: Arc<Service>, accepted: Accepted, peer: String, began: fn()) {
    let (_cut_when_dropped, cut) = oneshot::channel::<()>();
    let (ended, end) = oneshot::channel::<()>();
    let name = peer.clone();
    let work = move || {
        began();
        let served = serve(service, accepted, peer, cut);
        drop(ended);
        served
    };
    let thread = std::thread::Builder::new().name("nbd".to_owned()).spawn(work);
    let served = match thread {
        Ok(thread) => {
            // It says nothing, it ends.
            let _ = end.await;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        }
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::warn!(peer = name, %error, "could not serve an NBD connection on a thread of its own, closed it");
    }
}

fn serve(service: Arc<Service>, accepted: Accepted, peer: String, cut: oneshot::Receiver<()>) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let moved = {
        let _inside = runtime.enter();
        accepted.moved()?
    };
    let serving = async {
        tokio::select! {
            biased;
            () = super::connection(service, moved.into_stream(), peer) => {}
            _ = cut => {}
        }
    };
    runtime.block_on(serving);
    runtime.shutdown_background();
    Ok(())
}
