//! Energy and price of computing time.

use anyhow::{Result, ensure};
use serde::Serialize;

/// Power and price of one process: a GPU with its share of the host, or the host of a CPU run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CostRates {
    /// Power in watts.
    pub watts: Option<f64>,
    /// Price per hour, in any currency.
    pub price_per_hour: Option<f64>,
}

/// The cost of a run, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RunCost {
    /// Process hours: hours times number of processes.
    pub process_hours: f64,
    /// CPU core hours: process hours times CPU threads. `None` on a GPU, or if the number of
    /// threads is unknown.
    pub cpu_hours: Option<f64>,
    /// Energy in kWh. `None` if the power is unknown.
    pub kilowatt_hours: Option<f64>,
    /// Price, in the currency of `price_per_hour`. `None` if that is unknown.
    pub price: Option<f64>,
}

impl CostRates {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the flag whose value is negative or not finite.
    pub fn validate(&self) -> Result<()> {
        for (flag, value) in [("--watts", self.watts), ("--price-per-hour", self.price_per_hour)] {
            ensure!(
                value.is_none_or(|v| v.is_finite() && v >= 0.0),
                "{flag} is {}: it must be a number of at least 0",
                value.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Returns the cost of `process_hours`. `cpu_hours` is only copied into the result.
    pub(crate) fn cost(&self, process_hours: f64, cpu_hours: Option<f64>) -> RunCost {
        RunCost {
            process_hours,
            cpu_hours,
            kilowatt_hours: self.watts.map(|watts| watts * process_hours / 1e3),
            price: self.price_per_hour.map(|price| price * process_hours),
        }
    }
}

impl RunCost {
    /// Formats the cost, for example as `3.20 GPU hours, 1.12 kWh, costs 6.40`.
    pub(crate) fn describe(&self, for_gpu: bool) -> String {
        let mut text = match self.cpu_hours {
            _ if for_gpu => format!("{:.2} GPU hours", self.process_hours),
            Some(hours) => format!("{hours:.2} CPU core hours"),
            None => format!("{:.2} process hours", self.process_hours),
        };
        if let Some(energy) = self.kilowatt_hours {
            text += &format!(", {energy:.2} kWh");
        }
        if let Some(price) = self.price {
            text += &format!(", costs {price:.2}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_and_price_follow_from_hours() {
        let rates = CostRates { watts: Some(400.0), price_per_hour: Some(2.0) };
        let cost = rates.cost(96.0 * 4.0, None);
        assert_eq!((cost.kilowatt_hours, cost.price), (Some(153.6), Some(768.0)));
        assert_eq!(cost.describe(true), "384.00 GPU hours, 153.60 kWh, costs 768.00");
        assert_eq!(CostRates::default().cost(0.5, Some(1.0)).describe(false), "1.00 CPU core hours");
        assert!(
            CostRates { watts: Some(-1.0), ..rates }.validate().unwrap_err().to_string().starts_with("--watts is -1")
        );
        assert!(CostRates { watts: Some(f64::NAN), ..rates }.validate().is_err());
    }
}
