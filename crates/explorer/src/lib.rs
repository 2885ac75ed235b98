//! The sense explorer: a web page that shows and edits the senses of a Backpack, and its JSON API
//! (docs/explorer.md). One thread handles HTTP, and a second thread owns the model and computes.

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
