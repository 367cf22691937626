//! The checked calls say what is wrong, and do nothing.

use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer},
    stream::{Stream, StreamFlags},
};
use zipserv::cuda::{CudaError, MAX_TOKENS, Plan, decompress, zipgemm, zipgemm_plan};

use crate::{
    data::{Kind, Product},
    lab::{Lab, upload},
};

fn refused(result: Result<(), CudaError>) -> bool {
    matches!(result, Err(CudaError::Argument(_)))
}

#[test]
fn checked_multiplication() {
    for mut lab in Lab::each() {
        let (m, k, n) = (100, 200, 3);
        let bits = Kind::Gaussian.weights(m, k);
        let weights = upload(m, k, &bits);
        for n in [0, MAX_TOKENS + 1] {
            assert!(zipgemm_plan(lab.gpu, &weights, n).is_err(), "{n} tokens");
        }
        assert!(zipgemm_plan(lab.gpu, &weights, MAX_TOKENS).is_ok());
        assert!(Plan::with_kernel(lab.gpu, &weights, n, "decompress").is_err());
        let narrow = upload(m, k + 1, &Kind::Zero.weights(m, k + 1));
        for (kernel, _) in lab.prefill_kernels() {
            assert!(Plan::with_kernel(lab.gpu, &narrow, n, kernel).is_err());
        }
        let Ok(plan) = zipgemm_plan(lab.gpu, &weights, n) else {
            assert_eq!(
                lab.decode_kernels().count(),
                0,
                "there are kernels, but no plan"
            );
            continue;
        };
        let values = Kind::Gaussian.activations(n, k);
        let x = DeviceBuffer::from_slice(&values).unwrap();
        let mut y = DeviceBuffer::from_slice(&vec![0u16; n * m]).unwrap();
        let mut short = DeviceBuffer::from_slice(&vec![0u16; n * m - 1]).unwrap();
        let larger = upload(64 * m, k, &Kind::Zero.weights(64 * m, k));
        let larger = zipgemm_plan(lab.gpu, &larger, n).unwrap();
        let more = zipgemm_plan(lab.gpu, &weights, 1000).unwrap();
        CurrentContext::synchronize().unwrap();

        let (gpu, stream, work) = (lab.gpu, &lab.stream, &mut lab.workspace);
        assert!(refused(zipgemm(
            gpu, stream, &plan, &weights, &x, &mut short, work
        )));
        assert!(refused(zipgemm(
            gpu,
            stream,
            &plan,
            &weights,
            &x.index(1..),
            &mut y,
            work
        )));
        assert!(refused(zipgemm(
            gpu,
            stream,
            &plan,
            &weights,
            &x.index(..0),
            &mut y,
            work
        )));
        assert!(refused(zipgemm(
            gpu, stream, &larger, &weights, &x, &mut y, work
        )));
        assert!(refused(zipgemm(
            gpu, stream, &more, &weights, &x, &mut y, work
        )));
        zipgemm(gpu, stream, &plan, &weights, &x, &mut y, work).unwrap();
        // The workspace now follows that stream.
        let other = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
        assert!(refused(zipgemm(
            gpu, &other, &plan, &weights, &x, &mut y, work
        )));

        stream.synchronize().unwrap();
        let mut outputs = vec![0; n * m];
        y.copy_to(&mut outputs).unwrap();
        Product::new(&values, &bits, k).check(&outputs, &plan);
    }
}

#[test]
fn checked_decompression() {
    for lab in Lab::each() {
        let (rows, cols) = (100, 200);
        let bits = Kind::Gaussian.weights(rows, cols);
        let matrix = upload(rows, cols, &bits).duplicate().unwrap();
        let mut output = DeviceBuffer::from_slice(&vec![0u16; rows * cols]).unwrap();
        CurrentContext::synchronize().unwrap();
        assert!(refused(decompress(
            lab.gpu,
            &lab.stream,
            &matrix,
            &mut output.index(1..)
        )));
        decompress(lab.gpu, &lab.stream, &matrix, &mut output).unwrap();
        lab.stream.synchronize().unwrap();
        let mut restored = vec![0; rows * cols];
        output.copy_to(&mut restored).unwrap();
        assert!(restored == bits);
    }
}
