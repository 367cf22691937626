use half::bf16;

/// Values in rows: FP32, a row for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<T = f32> {
    width: usize,
    values: Vec<T>,
}

/// A weight: a vector, or the rows of a matrix.
pub type Tensor = Rows<bf16>;

impl<T> Rows<T> {
    /// Takes rows one after the other.
    ///
    /// # Panics
    /// If `width` is 0, or the values are no whole rows.
    pub fn new(width: usize, values: Vec<T>) -> Self {
        assert_eq!(values.len() % width, 0, "rows are whole");
        Self { width, values }
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.width..][..self.width]
    }
}

impl Rows {
    /// Rows of zeros.
    pub fn zeros(width: usize, rows: usize) -> Self {
        Self::new(width, vec![0.0; width * rows])
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }

    /// All rows, to write.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.width)
    }

    /// One row, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    /// Adds a row at the end.
    pub fn push(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.width);
        self.values.extend_from_slice(row);
    }

    /// Some of the rows, in the order given.
    pub fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&row| self.row(row));
        Self::new(self.width, values.copied().collect())
    }

    /// Adds other rows, value by value.
    pub fn add(&mut self, other: &Self) {
        for (value, other) in self.values.iter_mut().zip(&other.values) {
            *value += other;
        }
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, row after row, to write.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// All values, row after row.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}
