//! Stores that break promises: one below the trait, one behind HTTP.

pub mod cheat;
pub mod mini_s3;
