use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::panic;

use anyhow::Result;
use clap::Args;
use explorer::{AppState, ListenAddress};
use trainer::Stop;

use crate::args::model::ModelArgs;
use crate::panic_message;

/// Explore a Backpack's senses in a browser
///
/// Serves a page on this machine alone: the senses of a word, what a text makes of them, what edits change. It
/// needs nothing from the network. The same as JSON is in docs/explorer.md. Ctrl-C ends it.
/// Example: backpack serve --model runs/quickstart-model --port 8008
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    compute: ModelArgs,
    /// The port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8008)]
    port: u16,
    /// The address to listen on; any but a loopback address lets other machines in, without a password
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
}

impl Serve {
    pub(crate) fn run(self, stop: &Stop) -> Result<()> {
        // A failure costs one answer, not the server: the explorer makes its model anew.
        panic::set_hook(Box::new(|info| {
            let _ = writeln!(io::stderr(), "warning: {}", panic_message(info));
        }));
        let Serve { compute, port, host } = self;
        let folder = compute.model.clone();
        if !host.is_loopback() {
            eprintln!(
                "warning: {host} is no loopback address: whoever reaches it can use the model; there is no password"
            );
        }
        let load = move || {
            let model = compute.load_with_sense_table()?;
            let tokenizer = compute.tokenizer(&model)?;
            let name = compute.model.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_owned()));
            let name = name.unwrap_or_else(|| compute.model.clone().into_os_string());
            AppState::new(model, tokenizer, name.to_string_lossy().into_owned())
        };
        let listening = |address| {
            let mut out = io::stdout().lock();
            writeln!(out, "serving {} at http://{address}/", folder.display())?;
            Ok(out.flush()?)
        };
        explorer::serve(ListenAddress { host, port }, load, listening, || stop.requested())
    }
}
