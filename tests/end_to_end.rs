//! Tests of the whole program: they run the binary as a user does.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod support;

mod bad_input;
mod benching;
mod controlling;
mod cuda_loading;
mod dependencies;
mod distributed;
mod editing;
mod evaluating;
mod faults;
mod import;
mod launching;
mod models;
mod pipeline;
mod preparing;
mod resuming;
mod sensing;
mod serving;
mod signals;
mod threads;
mod watching;
