//! What can keep a process server from starting. What goes wrong later is handled where it happens.

/// A process server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessServerError {
    /// A setting is out of range: fix the configuration.
    #[error("process server setting {setting} is out of range: {rule}")]
    Config {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        rule: &'static str,
    },
    /// The operating system gave no thread.
    #[error("worker thread {index} could not be started")]
    Thread {
        /// Which one.
        index: usize,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}
