//! What is told of the results, and in which forms.

mod files;
mod json;
mod machine;
mod promises;
mod svg;
mod table;

pub(crate) use files::write;
pub(crate) use machine::Machine;
pub(crate) use promises::{Promise, Verdict, promises};
pub(crate) use table::{notes, tables};
