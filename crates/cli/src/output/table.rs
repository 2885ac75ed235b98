//! Markdown tables with aligned columns, readable in a terminal too.

use std::fmt;

/// A table: a header and rows of the same number of cells.
pub(crate) struct Table {
    /// Number of text columns, from the left. They are left-aligned; the other columns hold
    /// numbers and are right-aligned.
    text_columns: usize,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table whose first `text_columns` columns hold text and the others numbers.
    pub(crate) fn new(header: &[&str], text_columns: usize) -> Self {
        Table { text_columns, header: header.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row with one cell per column.
    pub(crate) fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A vertical bar would end the cell.
        self.rows.push(cells.into_iter().map(|cell| cell.replace('|', "\\|")).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.header]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default().max(3)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut write_line = |cells: &[String]| {
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                if column < self.text_columns {
                    write!(f, "| {cell:<width$} ")?;
                } else {
                    write!(f, "| {cell:>width$} ")?;
                }
            }
            writeln!(f, "|")
        };
        write_line(&self.header)?;
        let rule = |(column, width): (usize, &usize)| {
            if column < self.text_columns { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) }
        };
        write_line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| write_line(row))
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&["word", "p"], 1);
        table.add_row(["a | b".to_owned(), "0.125".to_owned()]);
        let want = "| word   |     p |\n| ------ | ----: |\n| a \\| b | 0.125 |\n";
        assert_eq!(table.to_string(), want);
        assert_eq!(Table::new(&["a", "b"], 2).to_string(), "| a   | b   |\n| --- | --- |\n");
    }
}
