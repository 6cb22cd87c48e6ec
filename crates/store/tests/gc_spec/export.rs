//! An export of a point: it reads an object that the point needs, for as long as its pin is in force.

use crate::world::{ObjectId, Pin, Rule, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Unborn,
    /// Has found a point in this machine's manifest.
    Found {
        machine: usize,
        object: ObjectId,
    },
    Asked {
        object: ObjectId,
    },
    Reads {
        object: ObjectId,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Export {
    pub number: usize,
    pub stage: Stage,
}

impl Export {
    pub fn new(number: usize) -> Self {
        Self { number, stage: Stage::Unborn }
    }

    /// What it may open, or 1 for the only step there is.
    pub fn choices(&self, world: &World) -> usize {
        match self.stage {
            Stage::Unborn => Self::points(world).count(),
            Stage::Found { .. } => 1,
            Stage::Asked { .. } => usize::from(!matches!(world.pins[self.number], Pin::Asked { .. })),
            Stage::Reads { .. } => usize::from(world.pins[self.number] == Pin::Ended),
        }
    }

    fn points(world: &World) -> impl Iterator<Item = (usize, ObjectId)> {
        let settled = world.machines.iter().enumerate().filter(|(_, machine)| machine.manifest.settled());
        settled.flat_map(|(i, machine)| machine.manifest.head().says.names.iter().map(move |object| (i, object)))
    }

    /// False when it has been told to stop.
    pub fn step(&mut self, world: &mut World, choice: usize) -> bool {
        self.stage = match self.stage {
            Stage::Unborn => {
                let (machine, object) = Self::points(world).nth(choice).expect("counted by `choices`");
                Stage::Found { machine, object }
            }
            Stage::Found { machine, object } => {
                world.pins[self.number] = Pin::Asked { machine, object };
                world.touched = true;
                match world.holds(Rule::OpenAfterPin) {
                    true => Stage::Asked { object },
                    false => Stage::Reads { object },
                }
            }
            Stage::Asked { object } if world.pins[self.number] == Pin::Acknowledged => {
                world.touched = true;
                Stage::Reads { object }
            }
            Stage::Asked { .. } | Stage::Reads { .. } => return false,
        };
        true
    }

    /// What it must be able to read now.
    pub fn needs(&self, world: &World) -> Option<ObjectId> {
        match self.stage {
            Stage::Reads { object } if world.pins[self.number] != Pin::Ended => Some(object),
            _ => None,
        }
    }

    /// Between finding a point and holding it.
    pub fn asks(&self) -> bool {
        matches!(self.stage, Stage::Found { .. } | Stage::Asked { .. })
    }

    pub fn unborn(&self) -> bool {
        self.stage == Stage::Unborn
    }
}
