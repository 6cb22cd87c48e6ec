//! The far shore: each position brought back by the shipped commands, read in full, and put before the judge.

use std::time::Instant;

use anyhow::{Context, ensure};
use nbd::{Client, ListenAddress};
use serde_json::Value;

use super::evidence::{blocks_of_export, blocks_of_file, refuses_a_lost_write};
use super::oracle::{self, Image};
use super::stamps::BLOCK_BYTES;
use super::story::{DISK_BYTES, DISKS, MACHINE, Recovered, Story, Wanted};

impl Story {
    /// Recovers and judges each position. Returns whether the judge itself passed its own test.
    pub(super) async fn recover(&mut self, wanted: &[Wanted]) -> anyhow::Result<bool> {
        let history = self.notes.history();
        let mut judge_is_sound = false;
        for (n, wanted) in wanted.iter().enumerate() {
            let (image, seq, time) = if wanted.serve {
                self.recover_by_serve(wanted).await?
            } else {
                self.recover_by_restore(n, wanted).await?
            };
            let via = if wanted.serve { "serve" } else { "restore" };
            let verdict = oracle::check(&history, &image, wanted.bounds);
            let says = match &verdict {
                Ok(cut) => format!("equal to a prefix: {} operations in, {} not yet", cut.included, cut.excluded),
                Err(violation) => format!("NOT a prefix: {violation}"),
            };
            self.output.say(&format!("Recovered {} by {via}, position {seq} of {time}: {says}.", wanted.what));
            if verdict.is_ok() && refuses_a_lost_write(&history, &image, wanted.bounds) == Some(true) {
                judge_is_sound = true;
            }
            self.report.recovered.push(Recovered { seq, time, via, equal: verdict.is_ok() });
        }
        if judge_is_sound {
            self.output.say("The same judge, shown an image with one write taken out, refused it.");
        }
        Ok(judge_is_sound)
    }

    async fn recover_by_restore(&self, n: usize, wanted: &Wanted) -> anyhow::Result<(Image, u64, String)> {
        let to = self.dir.join(format!("restored-{n}"));
        let target = to.to_str().context("the directory's name is not UTF-8")?;
        let arguments = ["restore", MACHINE, "--at", &wanted.selector, "--to", target, "--format", "raw"];
        let made = self.launcher.json(&arguments).await?;
        let mut image = Image::default();
        for name in DISKS {
            let disks = made["disks"].as_array().context("restore names the disks it made")?;
            let disk = disks.iter().find(|d| d["disk"] == name).with_context(|| format!("{name} was not restored"))?;
            let path = disk["path"].as_str().context("a restored disk has a path")?;
            image.disks.push(blocks_of_file(path.into(), DISK_BYTES).await?);
        }
        let (seq, time) = position_of(&made)?;
        Ok((image, seq, time))
    }

    async fn recover_by_serve(&mut self, wanted: &Wanted) -> anyhow::Result<(Image, u64, String)> {
        let mut image = Image::default();
        let mut position = None;
        for name in DISKS {
            let socket = self.dir.join(format!("{name}.sock"));
            let address = ListenAddress::Unix(socket);
            let listen = address.to_string();
            let arguments = ["serve", MACHINE, "--disk", name, "--at", &wanted.selector, "--listen", &listen];
            let started = Instant::now();
            let (child, ready) = self.launcher.serving("serve", &arguments).await?;
            let client = Client::connect(&address, name).await.context("cannot connect to what is served")?;
            client.read(0, BLOCK_BYTES as u32).await.context("cannot read what is served")?;
            self.report.first_read_seconds = self.report.first_read_seconds.max(started.elapsed().as_secs_f64());
            ensure!(client.size() == DISK_BYTES, "{name} is served with {} bytes", client.size());
            image.disks.push(blocks_of_export(&client).await?);
            child.kill().await?;
            position = Some(position_of(&ready)?);
        }
        let (seq, time) = position.context("there are disks")?;
        Ok((image, seq, time))
    }
}

fn position_of(answer: &Value) -> anyhow::Result<(u64, String)> {
    let position = &answer["position"];
    let seq = position["seq"].as_u64().context("an answer names its seq")?;
    let time = position["time"].as_str().context("an answer names its time")?;
    Ok((seq, time.to_owned()))
}
