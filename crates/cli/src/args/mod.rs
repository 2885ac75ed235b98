//! Command-line arguments that several commands share.

pub(crate) mod config;
pub(crate) mod cost;
pub(crate) mod distributed;
pub(crate) mod model;
pub(crate) mod sampling;
