//! Files of ours: names made durable, and work that may block taken off the runtime's threads.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::recover::RecoverError;

/// Where a file lies; the working directory for a bare name.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes names made and removed in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Runs file work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(io::Error::other(format!("file operation did not run to its end: {join}"))),
    }
}

/// What a recovery says when a file of ours could not be used.
pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecoverError + use<> {
    let path = path.to_owned();
    move |source| RecoverError::File { operation, path, source }
}
