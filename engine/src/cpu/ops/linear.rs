use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{Rows, Tensor, dot};
use crate::models::Linear;

/// `weight x + bias` for each row of `x`.
pub fn linear(linear: &Linear<Tensor>, x: &Rows) -> Rows {
    let mut y = matmul(&linear.weight, x);
    if let Some(bias) = &linear.bias {
        for y in y.iter_mut() {
            for (y, bias) in y.iter_mut().zip(bias.row(0)) {
                *y += bias.to_f32();
            }
        }
    }
    y
}

/// `weight x` for each row of `x`.
pub fn matmul(weight: &Tensor, x: &Rows) -> Rows {
    assert_eq!(weight.width(), x.width());
    let (outputs, tokens) = (weight.len(), x.len());
    if tokens == 0 {
        return Rows::zeros(outputs, 0);
    }
    // By outputs, so that a row of weights is read once for all tokens.
    let mut columns = vec![0.0; outputs * tokens];
    columns
        .par_chunks_exact_mut(tokens)
        .enumerate()
        .for_each_init(Vec::new, |row: &mut Vec<f32>, (output, column)| {
            row.resize(weight.width(), 0.0);
            weight.row(output).convert_to_f32_slice(row);
            for (y, x) in column.iter_mut().zip(x.iter()) {
                *y = dot(row, x);
            }
        });
    let mut y = Rows::zeros(outputs, tokens);
    for (token, y) in y.iter_mut().enumerate() {
        for (output, y) in y.iter_mut().enumerate() {
            *y = columns[output * tokens + token];
        }
    }
    y
}
