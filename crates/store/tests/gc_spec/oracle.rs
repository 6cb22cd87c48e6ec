//! The judge: what anybody may still ask for must be there. It may be asked in any state, as if that were the last one.

use crate::export::Export;
use crate::world::{Objects, World};

/// Errors: what was deleted though it is needed.
pub fn judge<'a>(world: &World, exports: impl Iterator<Item = &'a Export>) -> Result<(), &'static str> {
    let lost = |needed: Objects| !(needed - world.exists).is_empty();
    for machine in &world.machines {
        let (manifest, stream) = (machine.manifest.head().says, machine.stream.accepted());
        let behind = |position: u8| {
            let segments = stream.iter().skip(usize::from(position));
            segments.fold(Objects::NONE, |all, segment| all | segment.says)
        };
        if lost(manifest.names) {
            return Err("a point needs a deleted object");
        }
        if lost(manifest.pinned()) {
            return Err("a pin holds a deleted object");
        }
        if lost(behind(manifest.folded)) {
            return Err("a pending segment refers to a deleted object");
        }
        if machine.trimmed > manifest.needed_from() || manifest.cursor.is_some_and(|cursor| lost(behind(cursor))) {
            return Err("a consumer needs a deleted object");
        }
    }
    for object in exports.filter_map(|export| export.needs(world)) {
        if !world.exists.has(object) {
            return Err("an open export reads a deleted object");
        }
    }
    Ok(())
}
