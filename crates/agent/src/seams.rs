//! Where time, randomness and connections come in, so that a whole agent can run in simulation.

use std::time::SystemTime;

use async_trait::async_trait;
use model::Timestamp;
use ring::rand::SecureRandom;

/// Opens connections to process servers.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Connects to one address and proves who is there.
    async fn dial(&self, address: &str) -> Result<transport::Connection, transport::TransportError>;
}

/// Says what time it is.
pub trait Clock: Send + Sync {
    /// Now. It may go back: the sequencer clamps it.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// Gives the bits that name incarnations, instances and marks.
pub trait Random: Send + Sync {
    /// 128 bits that nobody else gets.
    fn bits(&self) -> [u8; 16];
}

/// The system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn bits(&self) -> [u8; 16] {
        let mut bits = [0; 16];
        ring::rand::SystemRandom::new().fill(&mut bits).expect("the kernel gives random bits once it has booted");
        bits
    }
}
