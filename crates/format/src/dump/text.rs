//! A [`Dump`] as lines of text.

use std::fmt;

use super::{BodyDump, Dump, HeaderDump, ManifestDump, MapDump, TableDump};

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.authenticated {
            true => writeln!(f, "{} object, header authenticated", self.header.kind)?,
            false => writeln!(f, "{} object, header NOT authenticated: trust nothing below", self.header.kind)?,
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "  PROBLEM       {problem}"))?;
        header(f, &self.header)?;
        if let Some(t) = &self.table {
            table(f, t)?;
        }
        if let Some(m) = &self.map {
            map(f, m)?;
        }
        if let Some(held) = &self.pack {
            writeln!(f, "pack of frames of {} segments", held.len())?;
            held.iter().try_for_each(|segment| writeln!(f, "  {segment}"))?;
        }
        match &self.body {
            Some(BodyDump::Opening { prev_epoch, prev_end, state }) => {
                writeln!(f, "opening: continues epoch {prev_epoch}, whose last accepted slot is {prev_end}")?;
                state.as_ref().map_or(Ok(()), |state| manifest(f, state))
            }
            Some(BodyDump::Manifest(step)) => manifest(f, step),
            Some(BodyDump::Hold { id, seq, lasts_seconds: 0 }) => writeln!(f, "hold {id} of seq {seq} ends"),
            Some(BodyDump::Hold { id, seq, lasts_seconds }) => {
                writeln!(f, "hold {id} of seq {seq} for {lasts_seconds} s")
            }
            Some(BodyDump::Consumers { trimmed, consumers }) => {
                writeln!(f, "trimmed up to epoch {trimmed}")?;
                consumers.iter().try_for_each(|consumer| writeln!(f, "consumer {consumer}"))
            }
            Some(BodyDump::Condemn(epochs)) => epochs.iter().try_for_each(|epoch| writeln!(f, "condemned: {epoch}")),
            Some(BodyDump::Registry(machine)) => writeln!(f, "machine {machine}"),
            Some(BodyDump::Opaque { bytes, hex }) => writeln!(f, "body: {bytes} bytes: {hex}"),
            None => Ok(()),
        }
    }
}

fn header(f: &mut fmt::Formatter<'_>, h: &HeaderDump) -> fmt::Result {
    writeln!(f, "  place         {}", h.place)?;
    writeln!(f, "  bytes         {}", h.total_bytes)?;
    writeln!(f, "  vault         {}", h.vault)?;
    writeln!(f, "  id            {}", h.id)?;
    writeln!(f, "  hash          {}", h.hash)?;
    writeln!(f, "  previous hash {}", h.prev_hash)?;
    writeln!(f, "  incarnation   {}", h.incarnation)?;
    writeln!(f, "  records       {} to {}", h.first_seq, h.last_seq)?;
    writeln!(f, "  times         {} to {}", h.first_time, h.last_time)?;
    writeln!(f, "  map version   {}", h.map_version)?;
    writeln!(f, "  record digest {}", h.record_digest)?;
    writeln!(f, "  gc seen       {}", h.gc_seen)?;
    writeln!(f, "  shared        {}", h.shared)?;
    writeln!(f, "  frames        {}", h.frame_count)?;
    writeln!(f, "  table         {} bytes sealed, {} plain", h.table_sealed_bytes, h.table_plain_bytes)?;
    writeln!(f, "  body digest   {}", h.body_digest)
}

fn table(f: &mut fmt::Formatter<'_>, t: &TableDump) -> fmt::Result {
    writeln!(
        f,
        "table: {} records write {} bytes, of these {} zeros and {} in earlier segments",
        t.records.len(),
        t.written_bytes,
        t.zero_bytes,
        t.referenced_bytes
    )?;
    for (at, reference) in t.references.iter().enumerate() {
        writeln!(f, "  reference {at}: {reference}")?;
    }
    for frame in &t.frames {
        writeln!(
            f,
            "  frame {}: {} bytes at {}, {} plain, codec {}",
            frame.number, frame.sealed_bytes, frame.offset, frame.plain_bytes, frame.codec
        )?;
    }
    for record in &t.records {
        writeln!(f, "  {} {} map {}: {}", record.seq, record.time, record.map_version, record.what)?;
        record.pieces.iter().try_for_each(|piece| writeln!(f, "      {piece}"))?;
    }
    Ok(())
}

fn map(f: &mut fmt::Formatter<'_>, m: &MapDump) -> fmt::Result {
    writeln!(f, "map of {} disks, made of {} segments and {} maps", m.disks.len(), m.segments.len(), m.nodes.len())?;
    for d in &m.disks {
        writeln!(
            f,
            "  disk {} {} of {} bytes: {} runs, {} bytes of data, {} of zeros",
            d.id, d.name, d.size, d.runs, d.data_bytes, d.zero_bytes
        )?;
    }
    m.nodes.iter().try_for_each(|node| writeln!(f, "  {node}"))?;
    m.segments.iter().try_for_each(|segment| writeln!(f, "  segment {segment}"))?;
    m.machines.iter().try_for_each(|machine| writeln!(f, "  reads from segments of {machine}"))
}

fn manifest(f: &mut fmt::Formatter<'_>, m: &ManifestDump) -> fmt::Result {
    writeln!(
        f,
        "manifest: {} maps, {} segments behind them, {} points",
        m.nodes.len(),
        m.segments.len(),
        m.points.len()
    )?;
    m.nodes.iter().try_for_each(|node| writeln!(f, "  {node}"))?;
    m.segments.iter().try_for_each(|segment| writeln!(f, "  segment {segment}"))?;
    m.packs.iter().try_for_each(|pack| writeln!(f, "  {pack}"))?;
    m.points.iter().try_for_each(|point| writeln!(f, "  point {point}"))
}
