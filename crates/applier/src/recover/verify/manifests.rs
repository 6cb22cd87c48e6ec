//! The manifest log: every object of its chain, and the newest manifest that can still be read.
//!
//! The newest opening states everything, so slots of older epochs may be gone (collected); those that are there are checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use format::FormatError;
use format::keys::Keys;
use format::manifest::Manifest;
use format::object::{LogKind, ObjectHash, ObjectHeader};
use model::MachineName;
use store::{LogPosition, Store};

use super::{Findings, check_epochs, fetch};
use crate::manifest::{Step, step};
use crate::recover::RecoverError;
use crate::recover::walk::skeleton;
use crate::segments;

/// Checks the manifest log and gives the newest manifest as far as it can be read.
pub(super) async fn check(
    store: &Store,
    keys: &Arc<Keys>,
    machine: &MachineName,
    findings: &mut Findings,
) -> Result<Manifest, RecoverError> {
    let log = LogKind::Manifest;
    let skeleton = skeleton(store, keys, machine, log, 0, &BTreeMap::new()).await?;
    check_epochs(store, keys, machine, log, &skeleton.epochs, findings).await?;
    findings.notes.extend(skeleton.stray.iter().map(|path| format!("{path} is no object of ours")));
    let newest = skeleton.slots.last().map_or(0, |position| position.epoch);
    let (mut collected, mut whole_so_far) = (0, true);
    let (mut manifest, mut before) = (Manifest::default(), Some(ObjectHash::default()));
    for position in skeleton.slots {
        let path = segments::path(machine, log, position);
        let Some(object) = fetch(store, &path, findings).await? else {
            match position.epoch < newest {
                true => collected += 1,
                false => {
                    findings.damage(&path, "missing, though the manifest log goes on behind it");
                }
            }
            (before, whole_so_far) = (None, false);
            continue;
        };
        match check_object(keys, machine, position, &object, before) {
            Ok((hash, what)) => {
                before = Some(hash);
                match what {
                    Step::Whole(whole) => (manifest, whole_so_far) = (whole, true),
                    Step::Commit(commit) => match manifest.apply(commit) {
                        Err(error) if whole_so_far => _ = findings.damage(&path, error),
                        // What it rests on is named already.
                        Ok(()) | Err(_) => {}
                    },
                }
            }
            Err((hash, error)) => {
                (before, whole_so_far) = (hash, false);
                findings.damage(&path, format!("{error}; crash points that only it recorded may be lost"));
            }
        }
    }
    if collected > 0 {
        let note = "slots of older manifest epochs are gone; the newest opening replaces them";
        findings.notes.push(format!("{collected} {note}"));
    }
    Ok(manifest)
}

type Refused = (Option<ObjectHash>, FormatError);

/// One object. When it is refused, its link of the chain is still given if its header is whole.
fn check_object(
    keys: &Keys,
    machine: &MachineName,
    position: LogPosition,
    object: &[u8],
    before: Option<ObjectHash>,
) -> Result<(ObjectHash, Step), Refused> {
    let header = ObjectHeader::parse(keys, object).map_err(|e| (None, e))?;
    let hash = ObjectHeader::hash(object).map_err(|e| (None, e))?;
    let what = step(keys, machine, position, object).map_err(|error| match error {
        FormatError::Misplaced { .. } => (None, error),
        other => (Some(hash), other),
    })?;
    if before.is_some_and(|before| header.prev_hash != before) {
        let found = "one that follows another object".to_owned();
        let expected = "one that follows the object before it".to_owned();
        return Err((Some(hash), FormatError::Misplaced { found, expected }));
    }
    Ok((hash, what))
}
