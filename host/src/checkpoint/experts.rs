//! Stacks of experts from a checkpoint.

use zipserv_gpu::layout::TILE_ROWS;

use super::{Checkpoint, Error, ErrorKind, TensorView};
use crate::{ExpertStack, Matrix};

impl Checkpoint {
    /// Packs matrices that the checkpoint has one by one as the stack of a mixture's experts. An expert is made of the
    /// matrices that are named, one below the other: a single one, or gate and up for a layer that gates.
    ///
    /// Matrices that are compressed in the same window are put together as they are, if all but the last of an expert
    /// have a multiple of 32 rows. Others are decoded, and compressed together. What this library has compressed gives
    /// the same stack either way, that of [`ExpertStack::encode`].
    ///
    /// # Errors
    /// [`ErrorKind::NoTensor`]; [`ErrorKind::NoMatrix`] for a tensor that is not BF16 of two dimensions;
    /// [`ErrorKind::ExpertShape`] when shapes differ, and [`ErrorKind::NoExperts`] when nothing is named;
    /// [`ErrorKind::Tensor`] when what is stored is damaged, or all are too large for the format;
    /// [`ErrorKind::Changed`]; [`ErrorKind::Io`].
    ///
    /// ```no_run
    /// use zipserv::checkpoint;
    ///
    /// let weights = checkpoint::open("small.safetensors")?;
    /// let of = |expert: usize, part: &str| format!("model.layers.0.mlp.experts.{expert}.{part}_proj.weight");
    /// let gate_up: Vec<_> = (0..128).map(|e| [of(e, "gate"), of(e, "up")]).collect();
    /// let down: Vec<_> = (0..128).map(|e| [of(e, "down")]).collect();
    /// let (gate_up, down) = (weights.pack_experts(&gate_up)?, weights.pack_experts(&down)?);
    /// # Ok::<(), checkpoint::Error>(())
    /// ```
    pub fn pack_experts<N: AsRef<str>, const PARTS: usize>(
        &self,
        experts: &[[N; PARTS]],
    ) -> Result<ExpertStack<'static>, Error> {
        let names = experts.as_flattened().iter();
        let views = names.map(|name| self.tensor(name.as_ref()));
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let Some(first) = views.first() else {
            return Err(Error::new(self.path(), ErrorKind::NoExperts));
        };
        let (rows, cols) = check(&views, PARTS)?;
        let stack = if can_be_put_together(&views, PARTS) {
            let matrices = views.iter().map(TensorView::matrix);
            let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
            for (view, matrix) in views.iter().zip(&matrices) {
                if view.header() != Some(matrix.header()) {
                    return Err(Error::new(view.path(), ErrorKind::Changed));
                }
            }
            ExpertStack::concat(experts.len(), &matrices)
        } else {
            let mut bytes = Vec::new();
            for view in &views {
                bytes.extend_from_slice(&view.decoded()?);
            }
            Matrix::from_le_bytes(rows, cols, &bytes)
                .and_then(|matrix| ExpertStack::encode_stacked(experts.len(), &matrix))
        };
        stack.map_err(|source| first.error(source))
    }
}

/// Checks that the tensors are matrices, and those of each expert like those of the first. Gives the rows of all, and
/// the columns.
fn check(views: &[TensorView], parts: usize) -> Result<(usize, usize), Error> {
    let mut all_rows = 0u64;
    for (index, view) in views.iter().enumerate() {
        let [rows, cols] = *matrix_shape(view)?;
        // The same part of the first expert; its parts may differ in rows alone.
        let is_first = index < parts;
        let like = &views[if is_first { 0 } else { index % parts }];
        let [like_rows, like_cols] = *matrix_shape(like)?;
        if cols != like_cols || !is_first && rows != like_rows {
            return Err(Error::new(
                view.path(),
                ErrorKind::ExpertShape {
                    tensor: view.name().into(),
                    shape: view.shape().into(),
                    like: like.name().into(),
                    like_shape: like.shape().into(),
                },
            ));
        }
        all_rows = all_rows.saturating_add(rows);
    }
    Ok((saturated(all_rows), saturated(matrix_shape(&views[0])?[1])))
}

/// What is too large is refused as a matrix of so many rows or columns.
fn saturated(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn matrix_shape<'a>(view: &TensorView<'a>) -> Result<&'a [u64; 2], Error> {
    let shape = view.shape().as_array();
    let shape = shape.filter(|_| view.dtype() == "BF16");
    shape.ok_or_else(|| view.no_matrix())
}

/// Whether all are compressed in one window, and end with a strip where another one of the same expert follows.
fn can_be_put_together(views: &[TensorView], parts: usize) -> bool {
    let base = |view: &TensorView| view.header().map(|header| header.base());
    let first = base(&views[0]);
    let ends_with_strip = |view: &TensorView| {
        let rows = view.header().map(|header| header.rows());
        rows.is_some_and(|rows| rows.is_multiple_of(TILE_ROWS))
    };
    first.is_some()
        && views.iter().all(|view| base(view) == first)
        && views[..parts - 1].iter().all(ends_with_strip)
}
