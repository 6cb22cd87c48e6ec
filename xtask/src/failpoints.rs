//! The failpoints in the code and their list in the crate `probe` are one set: the table test dies at every one of the
//! list, so a step that is missing there would never be tried, and a name that no code reaches would never be found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How a failpoint is marked, up to its name. Spelled in halves, so that no scan finds this file.
const MARKS: [&str; 2] = [concat!("failpoint", "!(\""), concat!("failpoint_now", "!(\"")];

/// What is listed and not in the code, and the other way round.
pub fn differences(files: &[PathBuf]) -> Vec<String> {
    let texts = files.iter().filter(|path| is_shipped(path)).filter_map(|path| std::fs::read_to_string(path).ok());
    let code: BTreeSet<String> = texts.flat_map(|text| names(&text)).collect();
    compare(&code, &probe::FAILPOINTS.iter().map(|point| point.name.to_owned()).collect())
}

/// Whether a file is the source of a crate that may have failpoints: any but the one that defines them.
fn is_shipped(path: &Path) -> bool {
    let mut parts = path.components().map(|part| part.as_os_str());
    let (first, name, folder) = (parts.next(), parts.next(), parts.next());
    first.is_some_and(|f| f == "crates") && name.is_some_and(|n| n != "probe") && folder.is_some_and(|f| f == "src")
}

/// The names of the failpoints in a text.
fn names(text: &str) -> Vec<String> {
    let after = MARKS.iter().flat_map(|mark| text.split(mark).skip(1));
    after.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

fn compare(code: &BTreeSet<String>, list: &BTreeSet<String>) -> Vec<String> {
    let unlisted = code.difference(list).map(|name| format!("failpoint {name} is not in probe::FAILPOINTS"));
    let unreached =
        list.difference(code).map(|name| format!("failpoint {name} of probe::FAILPOINTS is not in the code"));
    unlisted.chain(unreached).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_name_in_code_or_list_alone_is_wrong() {
        let text = format!("probe::{}a-b\"); x(); probe::{}c\")", MARKS[0], MARKS[1]);
        let found: BTreeSet<String> = names(&text).into_iter().collect();
        assert_eq!(found, set(&["a-b", "c"]));
        assert!(compare(&found, &set(&["c", "a-b"])).is_empty());
        assert_eq!(compare(&found, &set(&["c"])).len(), 1);
        assert_eq!(compare(&found, &set(&["a-b", "c", "d"])).len(), 1);
    }

    #[test]
    fn only_sources_of_other_crates_count() {
        for (path, is) in [("crates/agent/src/a/b.rs", true), ("crates/probe/src/lib.rs", false), ("tests/a.rs", false)]
        {
            assert_eq!(is_shipped(Path::new(path)), is, "{path}");
        }
    }
}
