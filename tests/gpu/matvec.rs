//! The kernel that `docs/KERNELS.md` makes gives what sums in FP64 give.

use zipserv::gpu::Buffer;

use crate::{
    data::{Kind, Product},
    lab::Lab,
};

#[allow(dead_code, reason = "a test has no use for its `main`")]
#[path = "../../examples/matvec.rs"]
mod example;

const SHAPES: [(usize, usize); 5] = [(1, 64), (32, 64), (100, 192), (257, 1024), (2048, 4096)];
const KINDS: [Kind; 5] = [
    Kind::Gaussian,
    Kind::Outliers,
    Kind::OutlierTiles,
    Kind::Nan,
    Kind::Subnormal,
];

#[test]
fn every_kind_and_shape() {
    for lab in Lab::each() {
        let kernel = example::Matvec::new(lab.device);
        for (kind, (m, k)) in KINDS.into_iter().flat_map(|kind| SHAPES.map(|s| (kind, s))) {
            let (bits, values) = (kind.weights(m, k), kind.activations(1, k));
            let weights = lab.upload(m, k, &bits);
            let x = lab.buffer(&values);
            let mut y = Buffer::from_slice(lab.device, &vec![f32::INFINITY; m]).unwrap();
            kernel.multiply(&lab.stream, &weights, &x, &mut y).unwrap();
            let sums = y.to_vec(&lab.stream).unwrap();
            let product = Product::new(&values, &bits, k);
            for (row, (&sum, &(exact, all))) in sums.iter().zip(product.sums()).enumerate() {
                let off = (f64::from(sum) - exact).abs();
                let close = off <= all * 1e-5 + 1e-38 || sum.is_nan() && exact.is_nan();
                assert!(
                    close,
                    "{kind:?}, {m} x {k}, row {row}: {sum:e}, not {exact:e}"
                );
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for lab in Lab::each() {
        let kernel = example::Matvec::new(lab.device);
        for (k, activations, outputs) in [(65, 65, 3), (64, 63, 3), (64, 64, 2)] {
            let weights = lab.upload(3, k, &Kind::Zero.weights(3, k));
            let x = lab.buffer(&vec![0; activations]);
            let mut y = Buffer::zeroed(lab.device, outputs).unwrap();
            let result = kernel.multiply(&lab.stream, &weights, &x, &mut y);
            let error = result.unwrap_err();
            assert!(error.to_string().contains("do not fit"), "{error}");
        }
    }
}
