//! `farshore revoke`: certificates that nobody takes any more.
//!
//! The list is signed by the CA, so it is made where the CA's key is. Every running role of the site that reads the same
//! directory takes it by itself; other hosts need a copy of the file.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;
use serde_json::json;
use transport::{CUT_WITHIN, Issued, RevocationList};

use crate::cli::{Global, RevokeArgs};
use crate::failure::usage;
use crate::output::Output;
use crate::{context, pki};

/// Revokes what is named, or shows what is revoked.
pub fn run(global: &Global, args: &RevokeArgs, output: Output) -> anyhow::Result<()> {
    let config = context::config(global)?;
    let ca_dir = &config.site.ca;
    let before = RevocationList::load(&ca_dir.join("ca.crt"))?;
    let issued = args.certificates.iter().map(|file| pki::issued(ca_dir, file));
    let mut named = issued.collect::<anyhow::Result<Vec<Issued>>>()?;
    let unknown = |serial: &transport::Serial| Issued { serial: serial.clone(), holder: "somebody".to_owned() };
    named.extend(args.serials.iter().map(unknown));
    if named.is_empty() {
        show(ca_dir, &before, &[], output);
        return Ok(());
    }
    if !pki::can_issue(ca_dir) {
        let dir = ca_dir.display();
        return Err(usage(format!("no ca.key in {dir}: revoke on the host that has it, then copy ca.crl from there")));
    }
    let new: Vec<Issued> = named.into_iter().filter(|one| !before.names(&one.serial)).collect();
    if new.is_empty() {
        show(ca_dir, &before, &[], output);
        return Ok(());
    }
    let list = pki::revoke(ca_dir, new.iter().map(|one| one.serial.clone()).collect())?;
    if let Some(lost) = new.iter().find(|one| !list.names(&one.serial)) {
        bail!("certificate {} is not on the list that was written", lost.serial);
    }
    show(ca_dir, &list, &new, output);
    Ok(())
}

fn show(ca_dir: &Path, list: &RevocationList, new: &[Issued], output: Output) {
    let file = RevocationList::file(&ca_dir.join("ca.crt"));
    let rows: Vec<_> = list.certificates().map(|(serial, since)| (serial.to_string(), since.to_string())).collect();
    let object = json!({
        "list": file.display().to_string(),
        "number": list.number(),
        "added": new.iter().map(|one| json!({ "serial": one.serial.to_string(), "holder": one.holder })).collect::<Vec<_>>(),
        "revoked": rows.iter().map(|(serial, since)| json!({ "serial": serial, "since": since })).collect::<Vec<_>>(),
    });
    output.print(&object, || {
        let mut text = String::new();
        for one in new {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "Revoked the certificate of {}, serial {}.", one.holder, one.serial);
        }
        let _ = match (new.is_empty(), rows.is_empty()) {
            (true, true) => write!(text, "No certificate of this site is revoked."),
            (true, false) => write!(text, "Revoked certificates, list {} in {}:", list.number(), file.display()),
            (false, _) => write!(
                text,
                "Roles that read {file} refuse it from now on and cut its connections within {seconds} s. Copy the file to \
                 the CA directory of every other host. A role of this site whose own certificate was revoked gets another \
                 at its next start where ca.key is.",
                file = file.display(),
                seconds = CUT_WITHIN.as_secs(),
            ),
        };
        if new.is_empty() {
            rows.iter().for_each(|(serial, since)| {
                let _ = write!(text, "\n  {serial}  since {since}");
            });
        }
        text
    });
}
