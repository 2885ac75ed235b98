//! The command `serve`.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::panic;

use anyhow::Result;
use clap::Args;
use explorer::{AppState, ListenAddress};
use trainer::Stop;

use crate::args::model::ModelArgs;
use crate::exit::panic_message;

/// Explore a Backpack's senses in a browser
///
/// Starts a web server on this machine. Its page shows the senses of words, how a text uses them,
/// and the effect of sense edits. It needs no network access. The same functions are available as
/// a JSON API (docs/explorer.md). Press Ctrl-C to stop the server.
///
/// Example: backpack serve --model runs/quickstart-model --port 8008
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    model: ModelArgs,
    /// Port to listen on; 0: any free port
    #[arg(long, value_name = "N", default_value_t = 8008)]
    port: u16,
    /// Address to listen on. Other machines can use the model, without a password, unless this is a
    /// loopback address
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
}

impl Serve {
    /// Serves until a signal stops it.
    pub(crate) fn run(self, stop: &Stop) -> Result<()> {
        // A panic ends one request, not the server: the explorer loads the model again.
        panic::set_hook(Box::new(|info| {
            let _ = writeln!(io::stderr(), "warning: {}", panic_message(info));
        }));
        let Serve { model: arguments, port, host } = self;
        let model_dir = arguments.model.clone();
        if !host.is_loopback() {
            eprintln!(
                "warning: {host} is not a loopback address: everyone who can reach it can use the model, without a password"
            );
        }
        let load = move || {
            let model = arguments.load_with_sense_table()?;
            let tokenizer = arguments.tokenizer(&model)?;
            let name = arguments.model.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_owned()));
            let name = name.unwrap_or_else(|| arguments.model.clone().into_os_string());
            AppState::new(model, tokenizer, name.to_string_lossy().into_owned())
        };
        let on_listening = |address| {
            let mut out = io::stdout().lock();
            writeln!(out, "serving {} at http://{address}/", model_dir.display())?;
            Ok(out.flush()?)
        };
        explorer::serve(ListenAddress { host, port }, load, on_listening, || stop.requested())
    }
}
