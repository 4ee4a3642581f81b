//! A table of text, numbers to the right.

/// Rows under a head line.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// How many columns, from the first, are text and stand to the left.
    text_columns: usize,
}

impl Table {
    /// A table with these column names, of which the first `text_columns` hold text.
    pub(crate) fn new(head: &[&str], text_columns: usize) -> Table {
        Table { rows: vec![head.iter().map(|name| (*name).to_owned()).collect()], text_columns }
    }

    /// Adds a row; cells that are missing stay empty.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines of the table, each ended.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let gap = if column == 0 { "" } else { "  " };
                let padded = if column < self.text_columns {
                    format!("{gap}{cell:<width$}")
                } else {
                    format!("{gap}{cell:>width$}")
                };
                line.push_str(&padded);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A number with about three digits.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

/// A whole number with a comma at the thousands.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["path", "ops/s"], 1);
        table.row(vec!["raw get".into(), "12,345".into()]);
        table.row(vec!["µ".into(), "7".into()]);
        assert_eq!(table.render(), "path      ops/s\nraw get  12,345\nµ             7\n");
    }

    #[test]
    fn a_short_row_is_no_error() {
        let mut table = Table::new(&["a", "b"], 2);
        table.row(vec!["x".into()]);
        assert_eq!(table.render(), "a  b\nx\n");
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(short(1234.6), "1235");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(1.234), "1.23");
        assert_eq!(short(99.96), "100");
        assert_eq!(short(0.0), "0");
        assert_eq!(short(0.004), "0.00");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1000.4), "1,000");
    }
}
