//! What `backpack eval` measures on, and how it shows what it found.

mod results;
mod sources;

pub(crate) use results::{Measured, Results, details, summary};
pub(crate) use sources::{DataArgument, Sources};
