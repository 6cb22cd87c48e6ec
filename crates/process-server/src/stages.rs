//! What each stage has done so far (see [`StageWork`]).

use model::StageWork;

/// The stages, in the order a byte meets them.
#[derive(Default)]
pub(crate) struct Stages {
    /// Records of a session are checked and put in order.
    pub ingest: StageWork,
    /// They are cut, found again, compressed, sealed and put together.
    pub pipeline: StageWork,
    /// Segments are put.
    pub upload: StageWork,
}
