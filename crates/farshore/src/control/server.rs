//! The role's end of its control socket.
//!
//! One process at a time may be a given role on a given data directory: a lock file beside the socket decides (two agents
//! on one source would destroy each other's dirty maps), and whoever holds it may replace a stale socket.

use std::fs::{self, File};
use std::future::IntoFuture;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::{ComparedRequest, MarkRequest, PinRequest, Role, Socket};
use crate::config::{Config, SOCKET_PATH_BYTES_MAX};
use crate::failure::{Exit, exit_of, one_line, usage};

/// Largest request body: a compare names at most about a million extents.
const BODY_BYTES_MAX: usize = 32 << 20;

/// Time between two drains of histograms.
const DRAIN_EVERY: Duration = Duration::from_secs(5);

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs the process's one metrics recorder. Later calls do nothing.
pub fn install_metrics() {
    if METRICS.get().is_none()
        && let Ok(handle) = PrometheusBuilder::new().install_recorder()
    {
        let _only_once = METRICS.set(handle);
    }
}

/// Histograms keep every sample until they are drained, and nobody may ever ask for the metrics.
async fn drain_metrics() {
    loop {
        tokio::time::sleep(DRAIN_EVERY).await;
        if let Some(handle) = METRICS.get() {
            handle.run_upkeep();
        }
    }
}

/// A role's socket, served until dropped or stopped.
pub struct ControlServer {
    path: PathBuf,
    task: JoinHandle<()>,
    _lock: File,
}

/// The lock of a role, taken before the role touches anything.
pub struct RoleLock {
    socket: Socket,
    path: PathBuf,
    file: File,
}

impl RoleLock {
    /// Takes it, or says that the role already runs.
    pub fn take(config: &Config, socket: Socket) -> anyhow::Result<Self> {
        let run = config.run_dir();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&run)
            .with_context(|| format!("cannot create {}", run.display()))?;
        let path = socket.path(config);
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(usage(format!(
                "the control socket {} has a path of over {SOCKET_PATH_BYTES_MAX} bytes: choose a shorter site.data_dir",
                path.display()
            )));
        }
        let lock_path = path.with_extension("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { socket, path, file }),
            Err(fs::TryLockError::WouldBlock) => {
                anyhow::bail!("{} already runs on {}: stop it first", socket.name(), config.site.data_dir.display())
            }
            Err(fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", lock_path.display())),
        }
    }

    /// Serves a role's socket for as long as the result lives.
    pub fn serve(self, role: Arc<dyn Role>) -> anyhow::Result<ControlServer> {
        let RoleLock { socket, path, file } = self;
        let listener = bind_private(&path)?;
        let router = Router::new()
            .route("/status", get(status))
            .route("/metrics", get(metrics))
            .route("/flushes", get(flushes))
            .route("/mark", post(mark))
            .route("/pin", post(pin))
            .route("/compared", post(compared))
            .route("/reload", post(reload))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(role);
        let name = socket.name();
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                served = axum::serve(listener, router).into_future() => {
                    if let Err(error) = served {
                        tracing::error!(%error, role = name, "control socket failed");
                    }
                }
                () = drain_metrics() => {}
            }
        });
        Ok(ControlServer { path, task, _lock: file })
    }
}

/// Binds a socket that only its owner may use. The directory is private, so nobody gets in before the mode is set.
fn bind_private(path: &Path) -> anyhow::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
        // A socket file left behind is stale and will be replaced.
        let _stale = fs::remove_file(&self.path);
    }
}

struct Refused(anyhow::Error);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match exit_of(&self.0) {
            Exit::Usage => StatusCode::BAD_REQUEST,
            _ => StatusCode::CONFLICT,
        };
        (status, Json(serde_json::json!({ "error": one_line(&self.0) }))).into_response()
    }
}

type Answer = Result<Json<serde_json::Value>, Refused>;

async fn status(State(role): State<Arc<dyn Role>>) -> Json<serde_json::Value> {
    Json(role.status())
}

async fn metrics() -> String {
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default()
}

async fn flushes(State(role): State<Arc<dyn Role>>) -> Answer {
    role.flushes().map(Json).map_err(Refused)
}

async fn mark(State(role): State<Arc<dyn Role>>, body: Body<MarkRequest>) -> Answer {
    role.mark(read(body)?).await.map(Json).map_err(Refused)
}

async fn pin(State(role): State<Arc<dyn Role>>, body: Body<PinRequest>) -> Answer {
    role.pin(read(body)?).await.map(Json).map_err(Refused)
}

async fn compared(State(role): State<Arc<dyn Role>>, body: Body<ComparedRequest>) -> Answer {
    role.compared(read(body)?).await.map(Json).map_err(Refused)
}

async fn reload(State(role): State<Arc<dyn Role>>) -> Answer {
    role.reload().await.map(Json).map_err(Refused)
}

type Body<T> = Result<Json<T>, JsonRejection>;

/// A body that cannot be read is refused in the same form as everything else.
fn read<T>(body: Body<T>) -> Result<T, Refused> {
    body.map(|Json(value)| value).map_err(|rejection| Refused(usage(rejection.body_text())))
}
