//! The arguments of every command that says what computing costs.

use clap::Args;
use trainer::CostRates;

#[derive(Debug, Args)]
pub(crate) struct CostArgs {
    /// Power that one process (a GPU with its share of the host) draws, in W: energy is told too
    #[arg(long, value_name = "W")]
    watts: Option<f64>,
    /// Price of an hour of one process, in any currency: the price is told too
    #[arg(long, value_name = "PRICE")]
    price_per_hour: Option<f64>,
}

impl From<CostArgs> for CostRates {
    fn from(arguments: CostArgs) -> Self {
        CostRates { watts: arguments.watts, price_per_hour: arguments.price_per_hour }
    }
}
