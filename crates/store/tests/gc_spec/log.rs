//! The epoch log, taken for granted: its rules are those of RFC 0001, which `epoch_log_spec` holds to account.
//!
//! What matters here is what they leave open. An epoch's entries land late, in any order, or never, also after a later
//! epoch was created; whoever opens a later epoch fixes, by one scan, which of them count; until that opening lands, nothing
//! new counts for anybody who reads. Epoch numbers are won, never skipped, and slots are owned, so neither is modelled.

/// What lies in a slot: the condemn list that it says was seen, and what it says besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry<T> {
    pub seen: u8,
    pub says: T,
}

/// An epoch's opening, and where it found the end of what it continues: so many slots of that epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opening<T> {
    pub continues: End,
    pub entry: Entry<T>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    pub epoch: u8,
    pub slots: u8,
}

#[derive(Debug, Clone, Hash)]
struct Epoch<T> {
    opening: Option<Opening<T>>,
    slots: Vec<Option<Entry<T>>>,
}

impl<T> Epoch<T> {
    fn landed(&self) -> usize {
        self.slots.iter().take_while(|slot| slot.is_some()).count()
    }
}

#[derive(Debug, Clone, Hash)]
pub struct Log<T> {
    epochs: Vec<Epoch<T>>,
}

impl<T: Copy> Log<T> {
    /// A log whose epoch 0 is opened with this entry.
    pub fn new(says: T) -> Self {
        let opening = Opening { continues: End { epoch: 0, slots: 0 }, entry: Entry { seen: 0, says } };
        Self { epochs: vec![Epoch { opening: Some(opening), slots: Vec::new() }] }
    }

    pub fn highest(&self) -> u8 {
        self.epochs.len() as u8 - 1
    }

    pub fn create_epoch(&mut self) -> u8 {
        self.epochs.push(Epoch { opening: None, slots: Vec::new() });
        self.highest()
    }

    fn opened_below(&self, epoch: u8) -> u8 {
        let opened = self.epochs[..usize::from(epoch)].iter().rposition(|epoch| epoch.opening.is_some());
        opened.expect("epoch 0 is opened") as u8
    }

    /// Where an opening of this epoch finds the end.
    pub fn scan_below(&self, epoch: u8) -> End {
        let epoch = self.opened_below(epoch);
        End { epoch, slots: self.epochs[usize::from(epoch)].landed() as u8 }
    }

    pub fn land_opening(&mut self, epoch: u8, opening: Opening<T>) {
        self.epochs[usize::from(epoch)].opening.get_or_insert(opening);
    }

    pub fn opened(&self, epoch: u8) -> bool {
        self.epochs[usize::from(epoch)].opening.is_some()
    }

    pub fn land(&mut self, epoch: u8, slot: u8, entry: Entry<T>) {
        let (slots, slot) = (&mut self.epochs[usize::from(epoch)].slots, usize::from(slot));
        slots.resize(slots.len().max(slot + 1), None);
        slots[slot].get_or_insert(entry);
    }

    pub fn has_landed(&self, epoch: u8, slots: u8) -> bool {
        self.epochs[usize::from(epoch)].landed() >= usize::from(slots)
    }

    /// Whether a reader may conclude: the highest epoch is opened, so what is accepted now stays accepted.
    pub fn settled(&self) -> bool {
        self.epochs.last().is_some_and(|epoch| epoch.opening.is_some())
    }

    /// Openings and entries that lie before this end, from the start.
    pub fn up_to(&self, end: End) -> Vec<Entry<T>> {
        let mut chain = vec![end];
        while chain[chain.len() - 1].epoch > 0 {
            let opening = self.epochs[usize::from(chain[chain.len() - 1].epoch)].opening.as_ref();
            chain.push(opening.expect("links lead to opened epochs").continues);
        }
        let mut entries = Vec::new();
        for End { epoch, slots } in chain.into_iter().rev() {
            let epoch = &self.epochs[usize::from(epoch)];
            entries.extend(epoch.opening.iter().map(|opening| opening.entry));
            entries.extend(epoch.slots[..usize::from(slots)].iter().flatten());
        }
        entries
    }

    /// The accepted log as it lies there now.
    pub fn accepted(&self) -> Vec<Entry<T>> {
        self.up_to(self.scan_below(self.epochs.len() as u8))
    }

    pub fn head(&self) -> Entry<T> {
        let End { epoch, slots } = self.scan_below(self.epochs.len() as u8);
        let epoch = &self.epochs[usize::from(epoch)];
        match slots {
            0 => epoch.opening.as_ref().expect("it is opened").entry,
            _ => epoch.slots[usize::from(slots) - 1].expect("it has landed"),
        }
    }
}
