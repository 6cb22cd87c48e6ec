//! The command line: every command, flag and default, with the text of `--help`.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 damage found. `--json` prints one object on standard output;
//! everything meant for eyes only goes to standard error.

use std::path::PathBuf;

use applier::recover::Share;
use clap::{Args, Parser, Subcommand, ValueEnum};
use format::consumers::ConsumerId;
use model::{DiskName, MachineName, PointId, RecordDigest, Selector, Seq};
use nbd::ListenAddress;
use transport::Serial;

/// Continuous disk replication and disaster recovery.
#[derive(Debug, Parser)]
#[command(name = "farshore", version, propagate_version = true, after_help = EXIT_HELP)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_HELP: &str = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 damage found.\n\
    Points, restore, serve, ls, cp, verify and dump need only the store and the vault key, with every role dead.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "FARSHORE_CONFIG", default_value = "farshore.toml")]
    pub config: PathBuf,
    /// The one store to use instead of the configured ones: file:PATH, az://…, s3://… or gs://…
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<String>,
    /// File with the vault key or the recovery key, instead of the configured one; "-" reads standard input
    #[arg(long, global = true, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Read the log from its start instead of its maps: slower, and the way around a damaged map
    #[arg(long, global = true)]
    pub without_maps: bool,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Live through a disaster in a temporary directory and prove what was recovered
    Demo(DemoArgs),
    /// Make a new site: commented farshore.toml, vault key, CA, embedded store; print the recovery key
    Init(InitArgs),
    /// Check a copy of the recovery key
    Key(KeyArgs),
    /// Revoke certificates of this site, or show which are; needs the CA's key
    Revoke(RevokeArgs),
    /// Run all roles in one process
    Up,
    /// Run the agent of one machine
    Agent(AgentArgs),
    /// Have a machine's running agent take up the configuration file: disks come, grow and go while clients stay connected
    Reload(MachineArgs),
    /// Run the process server
    ProcessServer,
    /// Run the applier
    Applier,
    /// Show how roles and machines stand; asks the running roles, else the store
    Status(StatusArgs),
    /// List the recovery points and valid positions of a machine
    Points(MachineArgs),
    /// Make a named recovery point; returns once it is stored
    Mark(MarkArgs),
    /// Hold a recovery point whatever the policy says; asks the running applier
    Pin(PinArgs),
    /// Let the policy decide about a point again
    Unpin(PinArgs),
    /// Stop protecting a machine; with --purge, delete everything the store holds of it
    Unprotect(UnprotectArgs),
    /// Write a machine's disks, as they were at a position, to image files
    Restore(RestoreArgs),
    /// Export a disk, as it was at a position, over NBD at once, without copying it first; the position is held meanwhile
    Serve(ServeArgs),
    /// List the partitions of a machine's disks, as they were at a position, or the files of one of them
    Ls(LsArgs),
    /// Copy a file or a directory, as it was at a position, out of an ext2, ext3 or ext4 file system, or with libguestfs
    /// XFS or NTFS; needs no root
    Cp(CpArgs),
    /// Re-read the store, recompute everything, and name what is damaged and which points it hits
    Verify(VerifyArgs),
    /// Say of every object of a machine that the applier would delete (unless `gc = false`) why it may go; or, with --shared, delete segments shared between machines that nobody reads any more
    Gc(GcArgs),
    /// List the appliers with a vault store of their own that still need a machine's stream in the cache store, or forget one that is gone for good
    Consumers(ConsumersArgs),
    /// Compare a source disk with a position: the detector of silent divergence (exit code 3 when they differ, 0 when --drain hands the result over)
    Compare(CompareArgs),
    /// Show what an object file of the store is and holds
    Dump(DumpArgs),
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show what each stage moves and how busy it is, and which one bounds the others
    #[arg(long)]
    pub stages: bool,
    /// How long to look at the stages
    #[arg(long = "for", value_name = "TIME", default_value = "2s", requires = "stages", value_parser = looking_time)]
    pub look: std::time::Duration,
}

/// `demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Work in this new or empty directory and keep it; without it a temporary one is used and removed
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory to make; it must not exist or be empty
    pub dir: PathBuf,
}

/// `key`
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// `key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Read a copy of the recovery key from standard input (or --file) and prove that it opens the vault
    Check(KeyCheckArgs),
}

/// `key check`
#[derive(Debug, Args)]
pub struct KeyCheckArgs {
    /// File with the copy, instead of standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Files of the certificates; without any, and without --serial, the list is shown
    #[arg(value_name = "CERTIFICATE")]
    pub certificates: Vec<PathBuf>,
    /// Serial number in hexadecimal, for a certificate whose file is gone; may be given several times
    #[arg(long = "serial", value_name = "HEX")]
    pub serials: Vec<Serial>,
}

/// `agent`
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Which machine; may be left out when the configuration has one
    pub machine: Option<MachineName>,
}

/// A machine.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// The machine
    pub machine: MachineName,
}

/// `mark`
#[derive(Debug, Args)]
pub struct MarkArgs {
    /// The machine
    pub machine: MachineName,
    /// What to call the point; printable text of at most 200 bytes
    #[arg(long, value_parser = label)]
    pub label: String,
}

/// `gc`
#[derive(Debug, Args)]
pub struct GcArgs {
    /// The machine; its own objects are only explained, for deleting them is up to the running applier
    #[arg(required_unless_present = "shared")]
    pub machine: Option<MachineName>,
    /// One pass over the segments of all machines that several may read from: condemn, or delete what was condemned
    #[arg(long, conflicts_with = "machine")]
    pub shared: bool,
    /// With --shared: give streams that have not seen the newest condemn list a new epoch, rather than wait until they have one;
    /// their agents connect again
    #[arg(long, requires = "shared", conflicts_with = "dry_run")]
    pub fence: bool,
    /// Only explain
    #[arg(long, required_unless_present = "shared")]
    pub dry_run: bool,
}

/// `consumers`
#[derive(Debug, Args)]
pub struct ConsumersArgs {
    /// The machine
    pub machine: MachineName,
    /// Forget this one, by the name that the list shows: the cache store then keeps nothing for it
    #[arg(long, value_name = "NAME")]
    pub forget: Option<ConsumerId>,
}

/// `pin` and `unpin`
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The machine
    pub machine: MachineName,
    /// The point, as `points` shows it, with or without "id:"
    #[arg(value_parser = point_id)]
    pub point: PointId,
}

fn point_id(text: &str) -> Result<PointId, String> {
    let id = text.strip_prefix("id:").unwrap_or(text);
    id.parse().map_err(|_| "this is no id of a point: `farshore points` shows them".to_owned())
}

/// How long `status --stages` may look.
fn looking_time(text: &str) -> Result<std::time::Duration, String> {
    let time = model::parse_duration(text).map_err(|error| error.to_string())?;
    let range = std::time::Duration::from_millis(100)..=std::time::Duration::from_secs(3600);
    if range.contains(&time) { Ok(time) } else { Err("it must be between 100ms and 1h".to_owned()) }
}

/// The agent's rule, told before it is asked.
fn label(text: &str) -> Result<String, String> {
    if text.len() > agent::LABEL_BYTES_MAX {
        return Err(format!("a label of {} bytes is too long: use at most {}", text.len(), agent::LABEL_BYTES_MAX));
    }
    if text.chars().any(char::is_control) {
        return Err("the label holds a line break or another control character: use printable text".into());
    }
    Ok(text.to_owned())
}

/// `unprotect`
#[derive(Debug, Args)]
pub struct UnprotectArgs {
    /// The machine
    pub machine: MachineName,
    /// Delete all its objects in the store: its recovery points are lost for good
    #[arg(long)]
    pub purge: bool,
}

/// Format of image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Raw, sparse
    Raw,
    /// qcow2
    Qcow2,
    /// Fixed VHD
    Vhd,
}

impl From<Format> for disk::ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => disk::ImageFormat::Raw,
            Format::Qcow2 => disk::ImageFormat::Qcow2,
            Format::Vhd => disk::ImageFormat::Vhd,
        }
    }
}

/// Help of every `--at`.
const AT: &str = "Position: latest | latest-processed | id:POINT | time:RFC3339 | seq:N";

/// `restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The machine
    pub machine: MachineName,
    #[arg(long, value_name = "SEL", help = AT)]
    #[expect(missing_docs, reason = "the help text is the documentation")]
    pub at: Selector,
    /// Directory for the images, one file for each disk; it must be absent or empty, or hold what an unfinished restore of the same left: that is gone on with
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Format of the images
    #[arg(long, value_enum)]
    pub format: Format,
    /// Do not read the images back from their medium to compare them with what was written
    #[arg(long)]
    pub no_verify: bool,
}

/// `serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The machine
    pub machine: MachineName,
    /// The disk
    #[arg(long)]
    pub disk: DiskName,
    #[arg(long, value_name = "SEL", help = AT)]
    #[expect(missing_docs, reason = "the help text is the documentation")]
    pub at: Selector,
    /// Where: unix:PATH, tcp:HOST:PORT (clients are not asked who they are), or tls:HOST:PORT (they must show a
    /// certificate of the site; needs the configuration)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: ListenAddress,
    /// Directory that keeps what is read of the store, sealed as it is there, for this and later exports; any number of
    /// processes may share it. Instead of the configured one, with its bound or 8GiB
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// New file for what clients write; without it a nameless temporary file takes it
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,
}

/// `ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The machine
    pub machine: MachineName,
    #[arg(long, value_name = "SEL", help = AT)]
    #[expect(missing_docs, reason = "the help text is the documentation")]
    pub at: Selector,
    /// The disk; may be left out when the machine has one
    #[arg(long)]
    pub disk: Option<DiskName>,
    /// Number of the partition; may be left out when the disk is one file system, or has one that can be read
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Directory or file to list; without it, and without --partition, the disks and their partitions are listed
    pub path: Option<PathBuf>,
}

/// `cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// The machine
    pub machine: MachineName,
    #[arg(long, value_name = "SEL", help = AT)]
    #[expect(missing_docs, reason = "the help text is the documentation")]
    pub at: Selector,
    /// The disk; may be left out when the machine has one
    #[arg(long)]
    pub disk: Option<DiskName>,
    /// Number of the partition; may be left out when the disk is one file system, or has one that can be read
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Copy a directory with everything below it; devices, pipes and sockets are skipped
    #[arg(short, long)]
    pub recursive: bool,
    /// Replace a file or a link that is there; a directory is never replaced
    #[arg(short, long)]
    pub force: bool,
    /// What to copy; a symbolic link is copied as a link, with a slash behind it its target is
    #[arg(value_name = "SRC")]
    pub from: PathBuf,
    /// New name here, or a directory that takes the copy under its own name
    #[arg(value_name = "DST")]
    pub to: PathBuf,
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The machine
    pub machine: MachineName,
    #[arg(long, value_name = "SEL", help = AT)]
    #[expect(missing_docs, reason = "the help text is the documentation")]
    pub at: Option<Selector>,
    /// What somebody outside the store saw of its end, as SEQ or SEQ:DIGEST (both are in `status` and in an earlier
    /// `verify`): the witness against loss of the newest tail
    #[arg(long, value_name = "H")]
    pub head: Option<Head>,
    /// Read only this share of the segments and maps whole, drawn by chance, such as 1%; of the others header and table
    #[arg(long, value_name = "P%")]
    pub sample: Option<Share>,
    /// Draw the same share as the verify that showed this seed
    #[arg(long, value_name = "N", requires = "sample")]
    pub seed: Option<u32>,
    /// Remember in this file what was read, so that a verify that was killed goes on with the rest; it goes when all is read
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
}

/// A witnessed end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The record that was stored.
    pub seq: Seq,
    /// The digest there, if it was noted.
    pub digest: Option<RecordDigest>,
}

impl std::str::FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "write SEQ or SEQ:DIGEST, as `farshore status` or an earlier verify showed them".to_owned();
        let (seq, digest) = text.split_once(':').map_or((text, None), |(seq, digest)| (seq, Some(digest)));
        if seq.is_empty() || !seq.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let digest = match digest {
            None => None,
            Some(hex) => Some(digest_of_hex(hex).ok_or_else(bad)?),
        };
        Ok(Head { seq: Seq(seq.parse().map_err(|_| bad())?), digest })
    }
}

fn digest_of_hex(hex: &str) -> Option<RecordDigest> {
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(RecordDigest(digest))
}

/// `compare`
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The machine
    pub machine: MachineName,
    /// The disk
    #[arg(long)]
    pub disk: DiskName,
    #[arg(long, value_name = "SEL", help = AT)]
    #[expect(missing_docs, reason = "the help text is the documentation")]
    pub at: Selector,
    /// Raw file or block device to compare with
    #[arg(long = "with", value_name = "DEVICE")]
    pub with: PathBuf,
    /// Hand the result to the machine's running agent, which drains what differs
    #[arg(long)]
    pub drain: bool,
}

/// `dump`
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The file
    pub file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn selectors_and_addresses_are_read_by_the_parser() {
        let line = "farshore serve web --disk root --at seq:9 --listen unix:/tmp/x --json";
        let cli = Cli::try_parse_from(line.split(' ')).expect(line);
        assert!(cli.global.json);
        assert!(Cli::try_parse_from("farshore points ../etc".split(' ')).is_err());
        assert!(Cli::try_parse_from("farshore verify web --at noon".split(' ')).is_err());
        assert!(Cli::try_parse_from("farshore verify web --sample 1% --seed 7".split(' ')).is_ok());
        for bad in ["--sample 1", "--sample 0%", "--seed 7"] {
            assert!(Cli::try_parse_from(format!("farshore verify web {bad}").split(' ')).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_witnessed_head_is_a_number_with_or_without_a_digest() {
        let digest = RecordDigest([0xab; 32]);
        assert_eq!("17".parse(), Ok(Head { seq: Seq(17), digest: None }));
        assert_eq!(format!("17:{digest}").parse(), Ok(Head { seq: Seq(17), digest: Some(digest) }));
        for bad in ["", "-1", "+1", ":", "17:", "17:ab", "x"] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }
}
