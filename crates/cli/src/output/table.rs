//! Tables in Markdown that a terminal shows well, too.

use std::fmt;

/// Rows under a heading.
pub(crate) struct Table {
    /// Columns from the left that hold words; the others hold figures.
    words: usize,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// The first column holds words, the others figures.
    pub(crate) fn of_figures(columns: &[&str]) -> Self {
        Self::new(1, columns)
    }

    /// All columns hold words.
    pub(crate) fn of_words(columns: &[&str]) -> Self {
        Self::new(columns.len(), columns)
    }

    fn new(words: usize, columns: &[&str]) -> Self {
        Table { words, columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// As many cells as columns.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A bar would end the cell.
        self.rows.push(cells.into_iter().map(|cell| cell.replace('|', "\\|")).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.columns]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default().max(3)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut line = |cells: &[String]| {
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                if column < self.words {
                    write!(f, "| {cell:<width$} ")?;
                } else {
                    write!(f, "| {cell:>width$} ")?;
                }
            }
            writeln!(f, "|")
        };
        line(&self.columns)?;
        let rule = |(column, width): (usize, &usize)| {
            if column < self.words { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) }
        };
        line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| line(row))
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::of_figures(&["word", "p"]);
        table.row(["a | b".to_owned(), "0.125".to_owned()]);
        let want = "| word   |     p |\n| ------ | ----: |\n| a \\| b | 0.125 |\n";
        assert_eq!(table.to_string(), want);
        assert_eq!(Table::of_words(&["a", "b"]).to_string(), "| a   | b   |\n| --- | --- |\n");
    }
}
