//! The sense explorer: a page that shows what a Backpack's senses say and what happens when they
//! are edited, and the JSON API behind it (docs/explorer.md). HTTP is answered by one thread and
//! computed by another, which alone knows the model.

mod answers;
mod assets;
mod explorer;
mod guard;
mod queue;
mod refusal;
mod requests;
mod server;

pub use explorer::Explorer;
pub use server::{Address, serve};
