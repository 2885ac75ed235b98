//! What hours of computing cost.

use anyhow::{Result, ensure};
use serde::Serialize;

/// What one process (a GPU with its share of the host, or the host of a CPU run) takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CostRates {
    /// Power drawn while it runs, in W.
    pub watts: Option<f64>,
    /// Price of an hour, in whatever currency.
    pub price_per_hour: Option<f64>,
}

/// What a stretch of computing costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RunCost {
    /// Hours by processes.
    pub process_hours: f64,
    /// Hours by CPU threads; none on a GPU, or where threads are not known.
    pub cpu_hours: Option<f64>,
    /// Energy in kWh, where a power was given.
    pub kilowatt_hours: Option<f64>,
    /// Price, where one was given.
    pub price: Option<f64>,
}

impl CostRates {
    /// Refuses what no machine has.
    ///
    /// # Errors
    /// Naming the flag.
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

    /// The cost of so many hours by processes, of which `cpu_hours` by CPU threads.
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
    /// As a person reads it: `3.20 GPU hours, 1.12 kWh, 6.40 in price`.
    pub(crate) fn describe(&self, on_gpu: bool) -> String {
        let mut text = match self.cpu_hours {
            _ if on_gpu => format!("{:.2} GPU hours", self.process_hours),
            Some(hours) => format!("{hours:.2} CPU core hours"),
            None => format!("{:.2} process hours", self.process_hours),
        };
        if let Some(energy) = self.kilowatt_hours {
            text += &format!(", {energy:.2} kWh");
        }
        if let Some(price) = self.price {
            text += &format!(", {price:.2} by the price an hour");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_become_energy_and_price() {
        let rates = CostRates { watts: Some(400.0), price_per_hour: Some(2.0) };
        let cost = rates.cost(96.0 * 4.0, None);
        assert_eq!((cost.kilowatt_hours, cost.price), (Some(153.6), Some(768.0)));
        assert_eq!(cost.describe(true), "384.00 GPU hours, 153.60 kWh, 768.00 by the price an hour");
        assert_eq!(CostRates::default().cost(0.5, Some(1.0)).describe(false), "1.00 CPU core hours");
        assert!(
            CostRates { watts: Some(-1.0), ..rates }.validate().unwrap_err().to_string().starts_with("--watts is -1")
        );
        assert!(CostRates { watts: Some(f64::NAN), ..rates }.validate().is_err());
    }
}
