//! The arguments of every command that says what computing costs.

use clap::Args;
use trainer::Rates;

#[derive(Debug, Args)]
pub(crate) struct RateArguments {
    /// Power that one process (a GPU with its share of the host) draws, in W: energy is told too
    #[arg(long, value_name = "W")]
    watts: Option<f64>,
    /// Price of an hour of one process, in any currency: the price is told too
    #[arg(long, value_name = "PRICE")]
    price_per_hour: Option<f64>,
}

impl From<RateArguments> for Rates {
    fn from(arguments: RateArguments) -> Self {
        Rates { watts: arguments.watts, price_per_hour: arguments.price_per_hour }
    }
}
