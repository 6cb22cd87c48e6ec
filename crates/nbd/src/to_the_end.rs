//! Work that has begun and runs to its end, whatever becomes of the runtime that polls it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// A future that has been polled. Dropped before its end, it goes on as a task of another runtime.
pub(crate) struct ToTheEnd<F: Future<Output = ()> + Send + 'static> {
    /// Nothing when it has ended, or panicked.
    work: Option<Pin<Box<F>>>,
    elsewhere: Handle,
}

impl<F: Future<Output = ()> + Send + 'static> ToTheEnd<F> {
    /// Work that is under way.
    pub(crate) fn begun(work: Pin<Box<F>>, elsewhere: Handle) -> Self {
        ToTheEnd { work: Some(work), elsewhere }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Future for ToTheEnd<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Taken out, so that work which panics is not gone on with.
        let mut work = self.work.take().expect("not polled again after its end");
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<F: Future<Output = ()> + Send + 'static> Drop for ToTheEnd<F> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.elsewhere.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_goes_on_elsewhere_when_its_runtime_ends() {
        let (go, gate) = oneshot::channel::<()>();
        let (ended, end) = oneshot::channel();
        let mut work = Box::pin(async move {
            gate.await.expect("let through");
            ended.send(()).expect("somebody waits");
        });
        assert!(futures::poll!(&mut work).is_pending());
        let elsewhere = Handle::current();
        std::thread::spawn(|| {
            let runtime = Builder::new_current_thread().build().expect("a runtime");
            runtime.spawn(ToTheEnd::begun(work, elsewhere));
            runtime.block_on(tokio::task::yield_now());
        })
        .join()
        .expect("no panic");
        go.send(()).expect("the work was not dropped");
        assert_eq!(end.await, Ok(()));
    }
}
