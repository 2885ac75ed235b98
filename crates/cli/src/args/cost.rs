//! Arguments of the commands that report energy and cost.

use clap::Args;
use trainer::CostRates;

/// Power and price of one process.
#[derive(Debug, Args)]
pub(crate) struct CostArgs {
    /// Power of one process (a GPU with its share of the machine) in watts; adds the energy in kWh
    #[arg(long, value_name = "W")]
    watts: Option<f64>,
    /// Price of one process per hour, in any currency; adds the cost
    #[arg(long, value_name = "PRICE")]
    price_per_hour: Option<f64>,
}

impl From<CostArgs> for CostRates {
    fn from(arguments: CostArgs) -> Self {
        CostRates { watts: arguments.watts, price_per_hour: arguments.price_per_hour }
    }
}
