//! From documents to text for people.

mod checks;
mod explain;
mod pings;
mod status;
mod style;
mod units;

pub(crate) use checks::{netcheck, reloaded};
pub(crate) use explain::explanation;
pub(crate) use pings::{ping_summary, pong};
pub(crate) use status::status;
