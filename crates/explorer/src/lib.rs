//! The sense explorer: a page that shows what a Backpack's senses say and what happens when they
//! are edited, and the JSON API behind it (docs/explorer.md). HTTP is answered by one thread and
//! computed by another, which alone knows the model.

mod api;
mod assets;
mod error;
mod handlers;
mod origin_check;
mod server;
mod state;
mod worker;

pub use server::{ListenAddress, serve};
pub use state::AppState;
