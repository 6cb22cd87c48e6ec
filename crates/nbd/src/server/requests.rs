//! What a request must satisfy, and how it runs on the export.
//!
//! `check` stands between the network and every export: an export never sees a range outside the disk, an empty one, an
//! unaligned one, a flag that was not offered, or a write to a read-only disk. `perform` holds the export to its own
//! promises in turn: an answer of the wrong size is an I/O error, never a malformed reply.

use bytes::Bytes;

use super::negotiation::Agreed;
use crate::protocol::{PAYLOAD_BYTES_MAX, Request, command, command_flag};
use crate::{BlockStatus, Errno, Export, ZeroFlags};

/// Runs in one BLOCK_STATUS reply. The protocol lets a server answer for a prefix of the range, so a fragmented disk
/// costs the client more requests, not us more memory.
const RUNS_MAX: usize = 8192;
/// Longest run that fits its 32-bit field and is a multiple of every block size, in bytes.
const RUN_BYTES_MAX: u64 = (u32::MAX - 4095) as u64;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) why: &'static str,
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing to tell.
    Done,
    /// A read.
    Data(Bytes),
    /// A block status: runs that fit the wire.
    Runs(Vec<BlockStatus>),
    /// It failed; the text is for structured replies.
    Failed(Errno, &'static str),
}

/// Refuses what the export must not see.
pub(super) fn check(export: &dyn Export, agreed: Agreed, request: &Request) -> Result<(), Refusal> {
    let invalid = |why| Err(Refusal { errno: Errno::Invalid, why });
    let Some(allowed) = flags_allowed(export, agreed, request.command) else {
        return invalid("the command is not offered");
    };
    if request.flags & !allowed != 0 {
        return invalid("the command has flags that are not offered");
    }
    if request.command == command::FLUSH {
        return if request.offset == 0 && request.len == 0 { Ok(()) } else { invalid("a flush has no range") };
    }
    let modifies = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if modifies && export.read_only() {
        return Err(Refusal { errno: Errno::Permission, why: "the export is read-only" });
    }
    if matches!(request.command, command::READ | command::WRITE) && request.len > PAYLOAD_BYTES_MAX {
        return invalid("the payload is larger than the server's maximum");
    }
    if request.command == command::BLOCK_STATUS && !agreed.allocation {
        return invalid("no metadata context was negotiated");
    }
    check_range(export, request)
}

fn check_range(export: &dyn Export, request: &Request) -> Result<(), Refusal> {
    let block = u64::from(export.minimum_block());
    let len = u64::from(request.len);
    if len == 0 {
        return Err(Refusal { errno: Errno::Invalid, why: "the range is empty" });
    }
    if !request.offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(Refusal { errno: Errno::Invalid, why: "the range is not aligned to the minimum block size" });
    }
    if request.offset.checked_add(len).is_none_or(|end| end > export.size()) {
        let errno = match request.command {
            command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        return Err(Refusal { errno, why: "the range ends beyond the export" });
    }
    Ok(())
}

/// The flags a command may carry, or `None` for a command that is not offered. FUA is allowed everywhere once offered,
/// as the protocol demands, and means nothing on commands that do not write.
fn flags_allowed(export: &dyn Export, agreed: Agreed, command: u16) -> Option<u16> {
    let own = match command {
        command::READ if agreed.structured => command_flag::DF,
        command::READ | command::WRITE | command::FLUSH | command::TRIM => 0,
        command::WRITE_ZEROES if export.fast_zero() => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::WRITE_ZEROES => command_flag::NO_HOLE,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        _ => return None,
    };
    Some(own | command_flag::FUA)
}

/// Runs a request that passed `check`. A read is always answered whole in one piece, which also is what DF asks for.
pub(super) async fn perform(export: &dyn Export, request: &Request, payload: Bytes) -> Outcome {
    let (offset, len) = (request.offset, u64::from(request.len));
    let fua = request.has(command_flag::FUA);
    let done = match request.command {
        command::READ => return read(export, request).await,
        command::BLOCK_STATUS => return block_status(export, request).await,
        command::WRITE => export.write(offset, payload, fua).await,
        command::FLUSH => export.flush().await,
        command::TRIM => export.trim(offset, len, fua).await,
        command::WRITE_ZEROES => {
            let (no_hole, fast) = (request.has(command_flag::NO_HOLE), request.has(command_flag::FAST_ZERO));
            export.write_zeroes(offset, len, ZeroFlags { fua, no_hole, fast }).await
        }
        _ => Err(Errno::Invalid),
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(errno) => Outcome::Failed(errno, errno.meaning()),
    }
}

async fn read(export: &dyn Export, request: &Request) -> Outcome {
    match export.read(request.offset, request.len).await {
        Ok(data) if data.len() == request.len as usize => Outcome::Data(data),
        Ok(data) => {
            tracing::error!(
                request.offset,
                request.len,
                returned = data.len(),
                "the export returned a read of wrong size"
            );
            Outcome::Failed(Errno::Io, "internal fault in the export")
        }
        Err(errno) => Outcome::Failed(errno, errno.meaning()),
    }
}

async fn block_status(export: &dyn Export, request: &Request) -> Outcome {
    let len = u64::from(request.len);
    match export.block_status(request.offset, len).await {
        Ok(runs) => {
            let runs = fit_runs(runs, len, if request.has(command_flag::REQ_ONE) { 1 } else { RUNS_MAX });
            if runs.is_empty() {
                tracing::error!(request.offset, request.len, "the export returned no block status");
                return Outcome::Failed(Errno::Io, "internal fault in the export");
            }
            Outcome::Runs(runs)
        }
        Err(errno) => Outcome::Failed(errno, errno.meaning()),
    }
}

/// Joins equal neighbours, drops empty runs, and cuts to the range, to the wire's field and to `runs_max`.
fn fit_runs(runs: Vec<BlockStatus>, len: u64, runs_max: usize) -> Vec<BlockStatus> {
    let mut fitted: Vec<BlockStatus> = Vec::new();
    let mut left = len.min(RUN_BYTES_MAX);
    for run in runs {
        let run = BlockStatus { len: run.len.min(left), ..run };
        left -= run.len;
        let room = fitted.len() < runs_max;
        match fitted.last_mut() {
            _ if run.len == 0 => {}
            Some(last) if (last.hole, last.zero) == (run.hole, run.zero) => last.len += run.len,
            _ if room => fitted.push(run),
            _ => break,
        }
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryExport;

    const SIZE: u64 = 64 << 20;
    const ALL: Agreed = Agreed { structured: true, allocation: true };

    fn request(command: u16, flags: u16, offset: u64, len: u32) -> Request {
        Request { flags, command, cookie: 1, offset, len }
    }

    fn refused(export: &MemoryExport, agreed: Agreed, request: Request) -> Option<Errno> {
        check(export, agreed, &request).err().map(|refusal| refusal.errno)
    }

    #[test]
    fn ranges_outside_the_disk_are_refused_by_the_error_of_their_command() {
        let disk = MemoryExport::new(SIZE);
        for (command, errno) in [
            (command::READ, Errno::Invalid),
            (command::WRITE, Errno::NoSpace),
            (command::TRIM, Errno::Invalid),
            (command::WRITE_ZEROES, Errno::NoSpace),
            (command::BLOCK_STATUS, Errno::Invalid),
        ] {
            assert_eq!(refused(&disk, ALL, request(command, 0, SIZE - 512, 512)), None);
            assert_eq!(refused(&disk, ALL, request(command, 0, SIZE - 512, 1024)), Some(errno));
            assert_eq!(refused(&disk, ALL, request(command, 0, u64::MAX - 511, 512)), Some(errno));
            assert_eq!(refused(&disk, ALL, request(command, 0, 0, 0)), Some(Errno::Invalid));
            assert_eq!(refused(&disk, ALL, request(command, 0, 1, 512)), Some(Errno::Invalid));
            assert_eq!(refused(&disk, ALL, request(command, 0, 0, 513)), Some(Errno::Invalid));
            assert_eq!(refused(&disk, ALL, request(command, 1 << 9, 0, 512)), Some(Errno::Invalid));
            assert_eq!(refused(&disk, ALL, request(command, command_flag::FUA, 0, 512)), None);
        }
    }

    #[test]
    fn bytes_may_be_addressed_where_the_minimum_block_is_one() {
        let disk = MemoryExport::new(SIZE).with_minimum_block(1);
        assert_eq!(refused(&disk, ALL, request(command::WRITE, 0, 3, 5)), None);
    }

    #[test]
    fn payloads_have_a_maximum_and_ranges_without_payload_do_not() {
        let disk = MemoryExport::new(SIZE);
        for command in [command::READ, command::WRITE] {
            assert_eq!(refused(&disk, ALL, request(command, 0, 0, PAYLOAD_BYTES_MAX)), None);
            assert_eq!(refused(&disk, ALL, request(command, 0, 0, PAYLOAD_BYTES_MAX + 512)), Some(Errno::Invalid));
        }
        assert_eq!(refused(&disk, ALL, request(command::TRIM, 0, 0, SIZE as u32)), None);
    }

    #[test]
    fn flags_belong_to_their_commands() {
        let disk = MemoryExport::new(SIZE);
        let simple = Agreed::default();
        for (agreed, command, flag, expected) in [
            (ALL, command::READ, command_flag::DF, None),
            (simple, command::READ, command_flag::DF, Some(Errno::Invalid)),
            (ALL, command::WRITE, command_flag::NO_HOLE, Some(Errno::Invalid)),
            (ALL, command::WRITE_ZEROES, command_flag::NO_HOLE, None),
            (ALL, command::WRITE_ZEROES, command_flag::FAST_ZERO, Some(Errno::Invalid)),
            (ALL, command::BLOCK_STATUS, command_flag::REQ_ONE, None),
            (simple, command::BLOCK_STATUS, 0, Some(Errno::Invalid)),
            (ALL, 5, 0, Some(Errno::Invalid)),
            (ALL, 8, 0, Some(Errno::Invalid)),
            (ALL, 0xffff, 0, Some(Errno::Invalid)),
        ] {
            assert_eq!(
                refused(&disk, agreed, request(command, flag, 0, 512)),
                expected,
                "command {command} flag {flag}"
            );
        }
        assert_eq!(refused(&disk, ALL, request(command::FLUSH, 0, 0, 0)), None);
        assert_eq!(refused(&disk, ALL, request(command::FLUSH, 0, 0, 512)), Some(Errno::Invalid));
    }

    #[test]
    fn a_read_only_disk_takes_no_writes() {
        let disk = MemoryExport::new(SIZE).into_read_only();
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(refused(&disk, ALL, request(command, 0, 0, 512)), Some(Errno::Permission));
        }
        assert_eq!(refused(&disk, ALL, request(command::READ, 0, 0, 512)), None);
    }

    #[test]
    fn runs_are_joined_cut_to_the_range_and_bounded() {
        let run = |len, hole| BlockStatus { len, hole, zero: hole };
        let runs = vec![run(512, true), run(0, false), run(512, true), run(512, false), run(4096, true)];
        assert_eq!(fit_runs(runs.clone(), 2048, 9), [run(1024, true), run(512, false), run(512, true)]);
        assert_eq!(fit_runs(runs.clone(), 2048, 1), [run(1024, true)]);
        assert_eq!(fit_runs(runs, 512, 9), [run(512, true)]);
        assert_eq!(fit_runs(vec![run(1 << 40, true)], u64::from(u32::MAX), 9), [run(RUN_BYTES_MAX, true)]);
    }
}
