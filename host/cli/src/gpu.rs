use std::{error::Error, io, process::ExitCode};

use cust::{
    device::{Device, DeviceAttribute},
    error::CudaError as Cust,
};
use indicatif::BinaryBytes;
use serde::Serialize;
use zipserv::{
    bench::driver,
    cuda::{self, CudaError},
};
use zipserv_gpu::launch::KERNELS;

use super::{
    DIFFERENT, Format, Outcome, console,
    self_test::{self, Check},
};

const NO_DEVICE: &str =
    "there is no CUDA device: the driver finds none, or CUDA_VISIBLE_DEVICES hides it";

#[derive(clap::Args)]
pub struct Gpu {
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct GpuJson {
    #[serde(flatten)]
    device: DeviceJson,
    checks: Vec<Check>,
    passed: bool,
}

#[derive(Serialize)]
struct DeviceJson {
    device: String,
    compute_capability: String,
    multiprocessors: u32,
    memory_bytes: usize,
    driver: String,
    /// Which build of the kernels.
    family: String,
    kernels: Vec<&'static str>,
}

/// What `open` makes of the first device; an error says what is missing.
pub fn first<E: Into<Box<dyn Error>>>(
    open: impl FnOnce(u32) -> Result<cuda::Gpu, E>,
) -> Result<cuda::Gpu, Box<dyn Error>> {
    open(0).map_err(|error| {
        let error = error.into();
        match error.downcast_ref() {
            Some(CudaError::Cuda(Cust::NoDevice | Cust::InvalidDevice)) => NO_DEVICE.into(),
            _ => error,
        }
    })
}

impl Gpu {
    pub fn run(&self) -> Outcome {
        let gpu = first(cuda::Gpu::new)?;
        let device = DeviceJson::new(&gpu)?;
        let json = self.format.json;
        if !json {
            device.print()?;
        }
        let mut checks = Vec::new();
        self_test::run(&gpu, |check| {
            if !json {
                console::print(&check)?;
            }
            checks.push(check);
            Ok(())
        })?;
        let passed = checks.iter().all(Check::passed);
        if json {
            console::print_json(&GpuJson {
                device,
                checks,
                passed,
            })?;
        }
        Ok(match passed {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(DIFFERENT),
        })
    }
}

impl DeviceJson {
    fn new(gpu: &cuda::Gpu) -> Result<Self, CudaError> {
        let device = Device::get_device(gpu.ordinal())?;
        let major = device.get_attribute(DeviceAttribute::ComputeCapabilityMajor)?;
        let minor = device.get_attribute(DeviceAttribute::ComputeCapabilityMinor)?;
        let kernels = KERNELS.iter().map(|launch| launch.name);
        Ok(Self {
            device: gpu.name()?,
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: gpu.multiprocessors(),
            memory_bytes: gpu.memory_bytes()?,
            driver: driver()?,
            family: gpu.family().to_string(),
            kernels: kernels.filter(|name| gpu.has(name)).collect(),
        })
    }

    fn print(&self) -> io::Result<()> {
        let memory = BinaryBytes(self.memory_bytes as u64);
        console::print(format_args!(
            "device   {}, compute capability {}, {} multiprocessors, {memory}\n\
             driver   {}\n\
             kernels  {}: {}",
            self.device,
            self.compute_capability,
            self.multiprocessors,
            self.driver,
            self.family,
            self.kernels.join(", "),
        ))
    }
}
