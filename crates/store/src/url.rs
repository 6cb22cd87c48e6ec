//! Opens a store from its URL. Credentials come from the environment only, so no URL ever holds a secret, and one that
//! seems to is refused without being repeated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};

use crate::local::LocalRoot;
use crate::{Store, StoreError};

/// Times the client repeats a request by itself; longer outages are the business of the loops above it.
const REQUEST_RETRIES_MAX: usize = 3;

/// Longest time a request is repeated.
const REQUEST_RETRY_TIMEOUT: Duration = Duration::from_secs(20);

const KINDS: &str = "use file:///directory, az://container/prefix, s3://bucket/prefix or gs://bucket/prefix";

pub(crate) fn open(url: &str) -> Result<Store, StoreError> {
    let refuse = |why: String| StoreError::Url { url: without_secrets(url), why };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(refuse(format!("it has no scheme: {KINDS}")));
    };
    match scheme {
        "file" => open_local(rest),
        "az" | "s3" | "gs" => open_remote(scheme, rest),
        _ => Err(format!("its scheme is not known: {KINDS}")),
    }
    .map(|store| store.with_url(&without_secrets(url)))
    .map_err(refuse)
}

/// The path is taken as it stands: nothing in it is percent-decoded.
fn open_local(path: &str) -> Result<Store, String> {
    let path = Path::new(path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err("the directory must be absolute and without '..': file:///directory".to_owned());
    }
    let root = LocalRoot::open(path)?;
    let files = LocalFileSystem::new_with_prefix(path).map_err(|e| format!("cannot open the directory: {e}"))?;
    Ok(Store::from_local(Arc::new(files.with_fsync(true)), root))
}

fn open_remote(scheme: &str, rest: &str) -> Result<Store, String> {
    let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    if !is_plain(container) || (!prefix.is_empty() && !prefix.split('/').all(is_plain)) {
        return Err(format!(
            "names may hold letters, digits, '-', '_' and '.' only; credentials belong in the environment: {KINDS}"
        ));
    }
    // Another part of the process may have chosen its provider already; it is the same one in every Farshore binary.
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig {
        max_retries: REQUEST_RETRIES_MAX,
        retry_timeout: REQUEST_RETRY_TIMEOUT,
        ..RetryConfig::default()
    };
    let at = |store: object_store::Result<Arc<dyn ObjectStore>>| {
        let store = store.map_err(|e| format!("check the credentials in the environment: {e}"))?;
        let below: Arc<dyn ObjectStore> =
            if prefix.is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
        Ok(Store::from_object_store(below))
    };
    match scheme {
        "az" => at(MicrosoftAzureBuilder::from_env()
            .with_container_name(container)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _)),
        "s3" => at(AmazonS3Builder::from_env()
            .with_bucket_name(container)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _)),
        _ => at(GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(container)
            .with_retry(retry)
            .build()
            .map(|s| Arc::new(s) as _)),
    }
}

fn is_plain(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(plain)
}

/// The URL up to the first character behind which a secret could stand, control characters made visible. The path of a
/// `file://` URL holds no secrets.
fn without_secrets(url: &str) -> String {
    let cut = if url.starts_with("file://") { url.len() } else { url.find(['?', '#', '@', ';']).unwrap_or(url.len()) };
    let mut shown: String = url[..cut].chars().take(200).flat_map(char::escape_debug).collect();
    if cut < url.len() {
        // What stands before an '@' is a user name or password.
        shown = shown.split("://").next().unwrap_or_default().to_owned() + "://…";
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        open(url).expect_err(url).to_string()
    }

    #[test]
    fn urls_that_cannot_be_used_say_what_to_do() {
        for url in
            ["", "store", "/var/lib/store", "ftp://x/y", "http://x", "s3://", "az:///p", "gs://a/../b", "s3://a//b"]
        {
            assert!(refusal(url).contains("s3://bucket/prefix"), "{url}");
        }
        for url in ["file://relative", "file://", "file:///a/../b"] {
            assert!(refusal(url).contains("absolute"), "{url}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in ["az://container/p?sig=hunter2", "s3://key:hunter2@bucket/p", "gs://b/p#hunter2", "s3://b/p;hunter2"]
        {
            assert!(!refusal(url).contains("hunter2"), "{}", refusal(url));
        }
    }
}
