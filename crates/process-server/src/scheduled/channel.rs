//! A bounded queue with the part of crossbeam's interface that the pipeline uses, made of shuttle's lock and condition
//! variable: crossbeam's own would block the one thread on which all of a schedule runs. crossbeam is taken to be right;
//! what is checked is how it is used.

use std::collections::VecDeque;
use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex};

struct Inner<T> {
    queue: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
}

struct Queue<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
}

pub(crate) struct Sender<T>(Arc<Queue<T>>);

pub(crate) struct Receiver<T>(Arc<Queue<T>>);

/// The sender is gone and the queue is empty.
#[derive(Debug)]
pub(crate) struct Closed;

pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let inner = Inner { queue: VecDeque::new(), capacity, senders: 1, receivers: 1 };
    let queue = Arc::new(Queue { inner: Mutex::new(inner), changed: Condvar::new() });
    (Sender(queue.clone()), Receiver(queue))
}

impl<T> Sender<T> {
    /// Gives the value back when the queue is full or nobody receives.
    pub(crate) fn try_send(&self, value: T) -> Result<(), T> {
        let mut inner = self.0.inner.lock().expect("queue");
        if inner.receivers == 0 || inner.queue.len() == inner.capacity {
            return Err(value);
        }
        inner.queue.push_back(value);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub(crate) fn recv(&self) -> Result<T, Closed> {
        let mut inner = self.0.inner.lock().expect("queue");
        loop {
            if let Some(value) = inner.queue.pop_front() {
                return Ok(value);
            }
            if inner.senders == 0 {
                return Err(Closed);
            }
            inner = self.0.changed.wait(inner).expect("queue");
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.inner.lock().expect("queue").queue.len()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.inner.lock().expect("queue").receivers += 1;
        Receiver(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.inner.lock().expect("queue").senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.inner.lock().expect("queue").receivers -= 1;
    }
}
